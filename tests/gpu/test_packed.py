"""Packed rows on a GPU: compaction bit by bit, sequences as they are alone, maps of the rows in use; what lies behind is never read."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tilegen import nn, ops
from tilegen.bench.check import judge, norm, require
from tilegen.ops.local_attention import Config as LocalConfig
from tilegen.ops.local_attention.reference import forward as pairs
from tilegen.ops.packed_linear import Config, reference

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BOUNDS = [0, 130, 130, 400, 401]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator(device="cuda").manual_seed(seed)).to(dtype)


def bounds(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_packed_and_unpacked_bit_by_bit(dtype: torch.dtype, share: float) -> None:
    x = draw(3, 333, 96, dtype=dtype).requires_grad_()
    active = draw(3, 333, seed=1).sigmoid() < share if 0 < share < 1 else torch.full((3, 333), bool(share), device="cuda")
    packed, cu_seqlens = ops.compact(x, active)
    assert cu_seqlens.tolist() == [0, *active.sum(1).cumsum(0).tolist()]
    assert torch.equal(packed[: cu_seqlens[-1]], x[active])
    there = torch.where(active[..., None], x, 0)
    y = ops.extract(packed, cu_seqlens, active)
    assert torch.equal(y, there)
    seed = draw(3, 333, 96, dtype=dtype, seed=2)
    assert torch.equal(torch.autograd.grad(y, x, seed)[0], torch.where(active[..., None], seed, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_sequence_is_as_alone_and_rows_behind_are_not_read(dtype: torch.dtype) -> None:
    room = BOUNDS[-1] + 300
    cu_seqlens = bounds(BOUNDS)

    def packed(*inputs: Tensor) -> list[Tensor]:
        spare = torch.full((1, room - BOUNDS[-1], *inputs[0].shape[2:]), torch.nan, device="cuda", dtype=inputs[0].dtype)
        o = ops.local_attention(*[torch.cat([x, spare], 1) for x in inputs], window=128, cu_seqlens=cu_seqlens)
        return [o[:, : BOUNDS[-1]]]

    def alone(*inputs: Tensor) -> list[Tensor]:
        parts = [[x[:, a:b] for x in inputs] for a, b in itertools.pairwise(BOUNDS) if a < b]
        return [torch.cat([pairs(LocalConfig(128), *part)[0] for part in parts], 1)]

    inputs = [draw(1, BOUNDS[-1], 3, 64, dtype=dtype, seed=k) for k in range(3)]
    require(judge(packed, alone, inputs, measure=norm))


@pytest.mark.parametrize("count", [0, 1, 300, 777])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_use_are_mapped(dtype: torch.dtype, count: int) -> None:
    number = bounds([count])
    x, weight, bias = draw(777, 320, dtype=dtype), draw(136, 320, dtype=dtype, seed=1), draw(136, dtype=dtype, seed=2)
    call = lambda *t: [ops.packed_linear(*t, count=number)]
    formula = lambda *t: reference.forward(Config(bias=True), *t, number)
    if count:
        require(judge(call, formula, [x, weight, bias], measure=norm))
    x[count:] = torch.nan
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = ops.packed_linear(*leaves, count=number)
    assert (y[count:] == 0).all()
    grads = torch.autograd.grad(y, leaves, draw(777, 136, dtype=dtype, seed=3))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][count:] == 0).all()


@pytest.mark.parametrize("value_dim", [64, 512], ids="values{}".format)
def test_the_layer_is_that_of_the_cpu(value_dim: int) -> None:
    torch.manual_seed(0)
    layer = nn.SeqBoat(64, window=128, key_dim=64, value_dim=value_dim, orders=4, dtype=torch.float64).float()
    x = torch.randn(2, 700, 64)
    found = []
    for device in ("cpu", "cuda"):
        there = layer.to(device)
        y = there(x.to(device))
        found.append([t.cpu() for t in (y, *torch.autograd.grad(y.square().sum(), list(there.parameters())))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.abs().max().item())
