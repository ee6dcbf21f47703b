"""Compaction: what must hold for any input; above all that sequences of a batch do not meet."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from tilegen import ops

C = 3
# One compiled library serves every batch and length, so all examples share it.
quick = settings(max_examples=30, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 70))
seeds = st.integers(0, 2**31)
shares = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def draw(shape: tuple[int, int], seed: int, share: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, C, generator=generator, dtype=torch.float64).requires_grad_()
    return x, torch.rand(shape, generator=generator) < share


def sequences(x: Tensor, active: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The packed rows and positions of every sequence."""
    packed, cu_seqlens, positions = ops.compact(x, active, return_positions=True)
    bounds = cu_seqlens.tolist()
    return [(packed[a:b], positions[a:b]) for a, b in itertools.pairwise(bounds)]


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True))


@quick
@given(shapes, seeds, shares)
def test_order_is_kept_and_the_way_back_leads_there(shape: tuple[int, int], seed: int, share: float) -> None:
    x, active = draw(shape, seed, share)
    for b, (rows, positions) in enumerate(sequences(x, active)):
        assert torch.equal(positions.long(), active[b].nonzero()[:, 0])
        assert torch.equal(rows, x[b, active[b]])
    assert torch.equal(ops.extract(*ops.compact(x, active), active), torch.where(active[..., None], x, 0))


@quick
@given(shapes, seeds, shares, st.randoms(use_true_random=False))
def test_permuted_sequences_give_permuted_results(shape: tuple[int, int], seed: int, share: float, random) -> None:
    x, active = draw(shape, seed, share)
    order = list(range(shape[0]))
    random.shuffle(order)
    found = sequences(x, active)
    assert same(sequences(x[order], active[order]), [found[b] for b in order])


@quick
@given(shapes, seeds, shares, st.sampled_from([0.0, 0.5, 1.0]))
def test_another_sequence_changes_nothing_for_the_others(shape: tuple[int, int], seed: int, share: float, other: float) -> None:
    """Before them or after them, be it active nowhere or throughout."""
    x, active = draw(shape, seed, share)
    more, chosen = draw((1, shape[1]), seed + 1, other)
    alone = sequences(x, active)
    assert same(sequences(torch.cat([x, more]), torch.cat([active, chosen]))[:-1], alone)
    assert same(sequences(torch.cat([more, x]), torch.cat([chosen, active]))[1:], alone)


@quick
@given(shapes, seeds, shares, st.integers(0, 5))
def test_the_adjoint_of_one_is_the_other(shape: tuple[int, int], seed: int, share: float, spare: int) -> None:
    """<compact(x), p> = <x, extract(p)>, and the gradients are these maps."""
    x, active = draw(shape, seed, share)
    capacity = max(1, int(active.sum()) + spare)
    packed, cu_seqlens = ops.compact(x, active, capacity=capacity)
    p = torch.randn(packed.shape, dtype=packed.dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    y, used = ops.extract(p, cu_seqlens, active), int(cu_seqlens[-1])
    torch.testing.assert_close((packed * p)[:used].sum(), (x * y).sum())
    assert torch.equal(torch.autograd.grad(packed, x, p.detach(), retain_graph=True)[0], y)
    assert torch.equal(torch.autograd.grad(y, p, x.detach())[0][:used], packed[:used])


@quick
@given(shapes, seeds, shares)
def test_same_inputs_same_bits(shape: tuple[int, int], seed: int, share: float) -> None:
    x, active = draw(shape, seed, share)
    runs = []
    for _ in range(2):
        packed, cu_seqlens = ops.compact(x, active)
        y = ops.extract(packed, cu_seqlens, active)
        runs.append((packed[: int(cu_seqlens[-1])], y, *torch.autograd.grad(y.square().sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
