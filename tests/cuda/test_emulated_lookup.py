"""Biases looked up in a table as the CUDA code of a GPU, emulated: every bit of the values, gradients by the tolerance rule."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.emulator import emulated
from tilegen import mechanisms
from tilegen.bench.check import verdict
from tilegen.mechanisms import Instance

H, R, M, P = 3, 37, 19, 9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_and_the_gradient_of_the_table(dtype: str) -> None:
    mechanism = mechanisms.get("relative_bias")
    functions = emulated(Instance(mechanism, mechanism.config(), {"M": M, "P": P}, dtype), ("forward", "backward"))
    generator = torch.Generator().manual_seed(0)
    table, seed = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape in ((H, M), (R, H, P)))
    given = {"table": table, "entry": torch.randint(0, M, (R, P), generator=generator, dtype=torch.int32)}
    made = functions.run("forward", given, ("forward", "reverse"))
    assert torch.equal(made["rows"], table[:, given["entry"].long()].movedim(0, 1))
    own = functions.run("backward", given | made | {"grad_rows": seed}, ("forward", "reverse"))["grad_table"]
    sums = []
    for wide in (torch.float32, torch.float64):
        leaf = table.to(wide).requires_grad_()
        sums += torch.autograd.grad(leaf[:, given["entry"].long()].movedim(0, 1), leaf, seed.to(wide))
    assert verdict("grad_table", own, *sums).passed
