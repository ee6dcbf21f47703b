"""Compaction as the CUDA code of a GPU, emulated: nothing is computed with the rows, so every bit is that of plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.emulator import emulated
from tilegen import mechanisms
from tilegen.mechanisms import Instance

B, T, C = 3, 37, 19
ORDERS = ("forward", "reverse")


def instance(op: str, dtype: str) -> Instance:
    mechanism = mechanisms.get(op)
    return Instance(mechanism, mechanism.config(), {"C": C}, dtype)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_and_their_gradients(dtype: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(B, T, generator=generator) < share
    x, seed = (torch.randn(B * T, C, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    used, flat = int(active.sum()), active.flatten()
    there = torch.where(flat[:, None], x, 0)

    pack, given = emulated(instance("compact", dtype), ("forward", "backward")), {"x": x, "active": active}
    given["room"] = torch.empty(used + 2, dtype=torch.int32)
    made = pack.run("forward", given, ORDERS)
    assert torch.equal(made["packed"][:used], x[flat])
    assert made["cu_seqlens"].tolist() == [0, *active.sum(1).cumsum(0).tolist()]
    upstream = seed[: used + 2]
    grad = pack.run("backward", given | made | {"grad_packed": upstream}, ORDERS)["grad_x"]
    assert torch.equal(grad, torch.zeros_like(x).masked_scatter(flat[:, None], upstream[:used]))

    back = emulated(instance("extract", dtype), ("forward", "backward"))
    given = {"packed": made["packed"], "starts": made["cu_seqlens"][:-1].contiguous(), "active": active}
    made = back.run("forward", given, ORDERS)
    assert torch.equal(made["y"], there.view(B, T, C))
    grad = back.run("backward", given | made | {"grad_y": seed.view(B, T, C)}, ORDERS)["grad_packed"]
    assert torch.equal(grad, torch.cat([seed[flat], torch.zeros(2, C, dtype=seed.dtype)]))
