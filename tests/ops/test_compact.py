"""Compaction: values against boolean indexing, gradients against finite differences, what lies behind the last row, capacity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops.compact import Config, ExtractConfig, reference

C = 3
SHAPES = [(1, 1), (1, 7), (3, 5), (2, 131), (5, 2)]
SHARES = {"none": 0.0, "some": 0.4, "all": 1.0}


def tokens(batch: int, time: int, dtype: torch.dtype = torch.float64, channels: int = C) -> Tensor:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(batch, time, channels, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def choice(batch: int, time: int, share: float = 0.4, seed: int = 0) -> Tensor:
    """Active tokens; with a share between 0 and 1 the first sequence has none and the last has all, where there are three."""
    active = torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < share
    if batch > 2 and 0 < share < 1:
        active[0], active[-1] = False, True
    return active


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-T{}".format(*s))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rows_are_those_of_boolean_indexing(dtype: torch.dtype, shape: tuple[int, int], share: float) -> None:
    x, active = tokens(*shape, dtype), choice(*shape, share)
    packed, cu_seqlens, positions = ops.compact(x, active, return_positions=True)
    used = int(active.sum())
    assert (packed.dtype, packed.shape) == (dtype, (active.numel(), C))
    room = torch.empty(active.numel())
    found = reference.compact(Config(return_positions=True), x.flatten(0, 1), active, room)
    assert torch.equal(cu_seqlens, found[1])
    for got, expected in ((packed, found[0]), (positions, found[2])):
        assert torch.equal(got[:used], expected[:used])
    y = ops.extract(packed, cu_seqlens, active)
    assert torch.equal(y, torch.where(active[..., None], x, 0))
    assert torch.equal(y, reference.extract(ExtractConfig(), packed, cu_seqlens[:-1], active)[0])


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_gradients_are_those_of_finite_differences(share: float) -> None:
    x, active = tokens(3, 5), choice(3, 5, share)
    cu_seqlens = ops.compact(x, active)[1]
    used = int(cu_seqlens[-1])
    if used:
        assert torch.autograd.gradcheck(lambda x: ops.compact(x, active)[0][:used], x)
    packed = tokens(1, 15)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda packed: ops.extract(packed, cu_seqlens, active), packed)
    assert torch.autograd.gradcheck(lambda x: ops.extract(*ops.compact(x, active), active), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_round_trip_are_exact(dtype: torch.dtype) -> None:
    x, active = tokens(3, 131, dtype, 19), choice(3, 131)
    packed, cu_seqlens = ops.compact(x, active)
    seed = torch.randn_like(x)
    (grad,) = torch.autograd.grad(ops.extract(packed, cu_seqlens, active), x, seed)
    assert torch.equal(grad, torch.where(active[..., None], seed, 0))


def test_what_lies_behind_the_last_row_is_never_read() -> None:
    x, active = tokens(3, 9), choice(3, 9)
    packed, cu_seqlens = ops.compact(x, active)
    used = int(cu_seqlens[-1])
    assert 0 < used < 27
    spoiled = packed.detach().clone()
    spoiled[used:] = float("nan")
    spoiled.requires_grad_()
    y = ops.extract(spoiled, cu_seqlens, active)
    assert torch.equal(y, torch.where(active[..., None], x, 0))
    (grad,) = torch.autograd.grad(y, spoiled, torch.ones_like(y))
    assert torch.equal(grad, torch.cat([torch.ones(used, C), torch.zeros(27 - used, C)]).double())
    seed = torch.full_like(packed, float("nan"))
    seed[:used] = 1
    (grad,) = torch.autograd.grad(packed, x, seed)
    assert torch.equal(grad, active[..., None].expand(x.shape).double())


def test_a_token_that_is_not_active_spoils_nothing() -> None:
    x, active = tokens(2, 9).detach(), choice(2, 9)
    x[~active] = float("nan")
    packed, cu_seqlens = ops.compact(x, active)
    assert torch.equal(packed[: int(cu_seqlens[-1])], x[active])
    assert ops.extract(packed, cu_seqlens, active).isfinite().all()


@pytest.mark.parametrize("spare", [0, 1, 40])
def test_any_capacity_that_suffices(spare: int) -> None:
    x, active = tokens(3, 9), choice(3, 9)
    used = int(active.sum())
    packed, cu_seqlens = ops.compact(x, active, capacity=used + spare)
    assert packed.shape == (used + spare, C)
    y = ops.extract(packed, cu_seqlens, active)
    assert torch.equal(y, torch.where(active[..., None], x, 0))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, active[..., None].expand(x.shape).double())


def test_too_many_active_rows_are_an_error() -> None:
    x, active = tokens(3, 9), choice(3, 9)
    used = int(active.sum())
    with pytest.raises(ArgumentError, match=f"capacity is {used - 1}, must be at least {used}, the number of active rows"):
        ops.compact(x, active, capacity=used - 1)
    packed, cu_seqlens = ops.compact(x, active)
    with pytest.raises(ArgumentError, match=rf"packed.shape\[0\] is {used - 1}, must be at least {used}"):
        ops.extract(packed[: used - 1], cu_seqlens, active)


def test_strided_arguments() -> None:
    x, active = tokens(4, 6), choice(4, 6)
    packed, _ = ops.compact(x.transpose(0, 1), active.t())
    used = int(active.sum())
    assert torch.equal(packed[:used], x.transpose(0, 1)[active.t()])


X, ACTIVE = torch.zeros(2, 4, C), torch.ones(2, 4, dtype=torch.bool)
PACKED, BOUNDS = torch.zeros(8, C), torch.tensor([0, 4, 8], dtype=torch.int32)
CASES = {
    "rank": (lambda: ops.compact(X[0], ACTIVE), r"x has shape \[4, 3\], must be a tensor \[B, T, C\]"),
    "list": (lambda: ops.compact([1.0], ACTIVE), "x has type list, must be a tensor"),
    "no time": (lambda: ops.compact(X[:, :0], ACTIVE[:, :0]), "without an empty dim"),
    "integers": (lambda: ops.compact(X.int(), ACTIVE), "x has dtype int32, must be one of float16"),
    "other length": (lambda: ops.compact(X, ACTIVE[:, :3]), r"active has shape \[2, 3\], must be a tensor \[B, T\] = \[2, 4\]"),
    "no mask": (lambda: ops.compact(X, None), "active has type NoneType"),
    "mask of numbers": (lambda: ops.compact(X, ACTIVE.float()), "active has dtype float32, must be bool"),
    "mask elsewhere": (lambda: ops.compact(X, ACTIVE.to("meta")), "active is on meta, must be on cpu"),
    "no capacity": (lambda: ops.compact(X, ACTIVE, capacity=0), "capacity is 0, must be a number of rows of at least 1"),
    "capacity": (lambda: ops.compact(X, ACTIVE, capacity=2.5), "capacity is 2.5, must be a number of rows"),
    "flag": (lambda: ops.compact(X, ACTIVE, return_positions=1), "return_positions is 1, must be True or False"),
    "packed rank": (lambda: ops.extract(X, BOUNDS, ACTIVE), r"packed has 3 dims \[2, 4, 3\], must have 2"),
    "packed list": (lambda: ops.extract(None, BOUNDS, ACTIVE), "packed is a NoneType"),
    "bounds dtype": (
        lambda: ops.extract(PACKED, BOUNDS.long(), ACTIVE),
        r"cu_seqlens is torch.int64 \[3\], must be int32 \[B\+1\]",
    ),
    "bounds list": (lambda: ops.extract(PACKED, [0, 4, 8], ACTIVE), "cu_seqlens is list, must be int32"),
    "bounds of others": (
        lambda: ops.extract(PACKED, BOUNDS[:2], ACTIVE),
        r"cu_seqlens has shape \[2\], must be \[B\+1\] = \[3\]",
    ),
    "mask rank": (lambda: ops.extract(PACKED, BOUNDS, ACTIVE[0]), r"active has 1 dims \[4\], must have 2"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
