"""Bounded-memory attention: what must hold for any input."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tilegen import ops

D, E, N = 9, 11, 10
# One compiled library serves every batch, number of heads and length, so all examples share a few of them.
quick = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 3))
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["running", "fixed", "none"])
normalized = st.sampled_from(["running", "fixed"])


def rows(shape: tuple[int, int, int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, size, generator=generator, dtype=torch.float64) for size in (D, D, E, N)]


def empty(batch: int, heads: int, kind: str) -> ops.BoundedMemoryState:
    return ops.bounded_memory_attention_init_state(batch, heads, N, D, E, normalizer=kind, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@quick
@given(shapes, seeds, st.booleans())
def test_constant_values_give_a_constant(shape: tuple[int, int, int], seed: int, causal: bool) -> None:
    q, k, v, s = rows(shape, seed)
    v = v[:, :1].expand(v.shape)
    close(ops.bounded_memory_attention(q, k, v, s, causal=causal), v)


@quick
@given(shapes, seeds, normalized)
def test_the_first_causal_row_is_the_first_value(shape: tuple[int, int, int], seed: int, kind: str) -> None:
    q, k, v, s = rows(shape, seed)
    close(ops.bounded_memory_attention(q, k, v, s, normalizer=kind)[:, 0], v[:, 0])


@quick
@given(shapes, seeds, kinds, st.data())
def test_the_future_changes_nothing(shape: tuple[int, int, int], seed: int, kind: str, data: st.DataObject) -> None:
    inputs = rows(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    changed = [torch.cat([x[:, :cut], x[:, cut:] * -2.5 + 1], 1) for x in inputs]
    first, second = (ops.bounded_memory_attention(*x, normalizer=kind)[:, :cut] for x in (changed, inputs))
    assert torch.equal(first, second)


@quick
@given(shapes, seeds)
def test_over_the_whole_sequence_fixed_is_running(shape: tuple[int, int, int], seed: int) -> None:
    inputs = rows(shape, seed)
    both = [ops.bounded_memory_attention(*inputs, normalizer=kind, causal=False) for kind in ("running", "fixed")]
    assert torch.equal(*both)


@quick
@given(shapes, seeds, st.floats(-50, 50))
def test_a_shift_of_s_cancels(shape: tuple[int, int, int], seed: int, shift: float) -> None:
    q, k, v, s = rows(shape, seed)
    for kind in ("running", "fixed"):
        close(ops.bounded_memory_attention(q, k, v, s + shift, normalizer=kind), ops.bounded_memory_attention(q, k, v, s, normalizer=kind))


@quick
@given(shapes, seeds, kinds, st.data())
def test_parts_joined_by_the_state_equal_the_whole(
    shape: tuple[int, int, int], seed: int, kind: str, data: st.DataObject
) -> None:
    inputs = rows(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    state, parts = empty(shape[0], shape[2], kind), []
    for piece in ([x[:, :cut] for x in inputs], [x[:, cut:] for x in inputs]):
        if piece[0].shape[1]:
            o, state = ops.bounded_memory_attention(*piece, normalizer=kind, initial_state=state, return_state=True)
            parts.append(o)
    close(torch.cat(parts, 1), ops.bounded_memory_attention(*inputs, normalizer=kind))


@settings(quick, max_examples=10)
@given(st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 2)), seeds, kinds)
def test_steps_equal_the_parallel_form(shape: tuple[int, int, int], seed: int, kind: str) -> None:
    inputs = rows(shape, seed)
    state, steps = empty(shape[0], shape[2], kind), []
    for i in range(shape[1]):
        o, state = ops.bounded_memory_attention_step(*[x[:, i] for x in inputs], state, normalizer=kind)
        steps.append(o)
    close(torch.stack(steps, 1), ops.bounded_memory_attention(*inputs, normalizer=kind))


@quick
@given(shapes, seeds, kinds)
def test_same_inputs_same_bits(shape: tuple[int, int, int], seed: int, kind: str) -> None:
    inputs = [x.requires_grad_() for x in rows(shape, seed)]
    runs = []
    for _ in range(2):
        o = ops.bounded_memory_attention(*inputs, normalizer=kind)
        runs.append((o, *torch.autograd.grad(o.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", ["running", "fixed"])
def test_a_recurrence_that_goes_on_without_z_is_another_function(kind: str) -> None:
    """What an implementation does whose cached state holds the slots only: its z starts anew, and the past counts for nothing."""
    inputs = rows((1, 40, 1), 0)
    first, second = ([x[:, :20] for x in inputs], [x[:, 20:] for x in inputs])
    whole = ops.bounded_memory_attention(*inputs, normalizer=kind)[:, 20:]
    _, state = ops.bounded_memory_attention(*first, normalizer=kind, initial_state=empty(1, 1, kind), return_state=True)
    go_on = lambda past: ops.bounded_memory_attention(*second, normalizer=kind, initial_state=past, return_state=True)[0]
    close(go_on(state), whole)
    assert (go_on(state._replace(z=empty(1, 1, kind).z)) - whole).abs().max() > 0.1
