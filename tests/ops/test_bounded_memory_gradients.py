"""Bounded-memory attention: values and gradients in float64 against the definition and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tilegen import ops
from tilegen.ops import BoundedMemoryState
from tilegen.ops.bounded_memory_attention import Config, reference

D, E, N = 9, 11, 10
NORMALIZERS = ["running", "fixed", "none"]
FORMS = list(itertools.product(NORMALIZERS, [True, False]))
FORM_IDS = [f"{normalizer}-{'causal' if causal else 'bidirectional'}" for normalizer, causal in FORMS]


def rows(batch: int, time: int, heads: int = 1, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + time)
    draw = lambda size: torch.randn(batch, time, heads, size, generator=generator, dtype=torch.float64)
    return [draw(size).requires_grad_() for size in (D, D, E, N)]


def state(batch: int, heads: int, normalizer: str) -> BoundedMemoryState:
    generator = torch.Generator().manual_seed(7)
    draw = lambda *size: torch.randn(batch, heads, N, *size, generator=generator, dtype=torch.float64).requires_grad_()
    return BoundedMemoryState(draw(D), draw(E), None if normalizer == "none" else draw())


@pytest.mark.parametrize("time", [1, 16, 37], ids="T{}".format)
@pytest.mark.parametrize(("normalizer", "causal"), FORMS, ids=FORM_IDS)
def test_values_and_gradients_are_those_of_the_pairwise_definition(normalizer: str, causal: bool, time: int) -> None:
    inputs = rows(2, time, 2)
    o = ops.bounded_memory_attention(*inputs, normalizer=normalizer, causal=causal)
    (expected,) = reference.pairwise(Config(normalizer, causal), *inputs)
    torch.testing.assert_close(o, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(o)
    got, wanted = (torch.autograd.grad(out, inputs, seed) for out in (o, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max().item()))


@pytest.mark.parametrize(("normalizer", "causal"), FORMS, ids=FORM_IDS)
def test_gradients_are_those_of_finite_differences(normalizer: str, causal: bool) -> None:
    run = lambda *x: ops.bounded_memory_attention(*x, normalizer=normalizer, causal=causal)
    assert torch.autograd.gradcheck(run, rows(1, 18))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_gradients_through_initial_and_final_state(normalizer: str) -> None:
    fields = [x for x in state(1, 1, normalizer) if x is not None]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: torch.Tensor, *before: torch.Tensor) -> list[torch.Tensor]:
        K, V, z = before if len(before) == 3 else (*before, None)
        options = {"normalizer": normalizer, "initial_state": BoundedMemoryState(K, V, z), "return_state": True}
        o, after = ops.bounded_memory_attention(q, k, v, s, **options)
        return [o, *[x for x in after if x is not None]]

    assert torch.autograd.gradcheck(run, (*rows(1, 18), *fields))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_gradients_of_a_sequence_in_parts_are_those_of_the_whole(normalizer: str) -> None:
    inputs = rows(2, 41)
    whole = ops.bounded_memory_attention(*inputs, normalizer=normalizer)
    past = ops.bounded_memory_attention_init_state(2, 1, N, D, E, normalizer=normalizer, dtype=torch.float64)
    parts = []
    for start, stop in ((0, 19), (19, 41)):
        piece = [x[:, start:stop] for x in inputs]
        o, past = ops.bounded_memory_attention(*piece, normalizer=normalizer, initial_state=past, return_state=True)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(whole)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seed) for y in (torch.cat(parts, 1), whole)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("normalizer", ["running", "fixed"])
def test_an_empty_state_has_zero_gradient_of_z(normalizer: str) -> None:
    inputs = rows(1, 5)
    K, V, z = ops.bounded_memory_attention_init_state(1, 1, N, D, E, normalizer=normalizer, dtype=torch.float64)
    empty = BoundedMemoryState(K, V, z.requires_grad_())
    o, after = ops.bounded_memory_attention(*inputs, normalizer=normalizer, initial_state=empty, return_state=True)
    gradients = torch.autograd.grad([o.sum(), after.K.sum(), after.z.sum()], [*inputs, z])
    assert all(g.isfinite().all() for g in gradients)
    assert torch.equal(gradients[-1], torch.zeros_like(z))


@pytest.mark.parametrize(("normalizer", "causal"), FORMS[:4], ids=FORM_IDS[:4])
def test_tokens_that_write_nothing_and_slots_that_stay_empty(normalizer: str, causal: bool) -> None:
    q, k, v, s = rows(2, 37, 2)
    hole = torch.rand(s.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    hole[..., 0], hole[:, :20, :, 1], hole[0, :9] = True, True, True  # never written, written late, nothing at all at first
    s = s.detach().masked_fill(hole, -math.inf).requires_grad_()
    inputs = [q, k, v, s]
    o = ops.bounded_memory_attention(*inputs, normalizer=normalizer, causal=causal)
    (expected,) = reference.pairwise(Config(normalizer, causal), *inputs)
    torch.testing.assert_close(o, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(o)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seed) for y in (o, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
