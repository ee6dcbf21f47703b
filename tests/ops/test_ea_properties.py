"""Element-wise attention: what must hold for any input."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from tilegen import ops
from tilegen.ops import ElementwiseAttentionState

CHANNELS = 3
# One compiled library serves every batch and length, so all examples share two of them.
quick = settings(max_examples=40, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 70))
seeds = st.integers(0, 2**31)
scales = st.sampled_from([0.1, 1.0, 3.0])


def rows(shape: tuple[int, int], seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, CHANNELS, generator=generator, dtype=torch.float64) for _ in range(3))
    return scale * q, scale * k, v


def attend(*inputs: torch.Tensor, causal: bool = True) -> torch.Tensor:
    return ops.elementwise_attention(*inputs, order=2, causal=causal)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@quick
@given(shapes, seeds, scales)
def test_the_first_causal_row_is_the_first_value(shape: tuple[int, int], seed: int, scale: float) -> None:
    q, k, v = rows(shape, seed, scale)
    close(attend(q, k, v)[:, 0], v[:, 0])


@quick
@given(shapes, seeds, scales, st.booleans())
def test_constant_values_give_a_constant(shape: tuple[int, int], seed: int, scale: float, causal: bool) -> None:
    q, k, v = rows(shape, seed, scale)
    v = v[:, :1].expand(v.shape)
    close(attend(q, k, v, causal=causal), v)


@quick
@given(shapes, seeds, scales, st.booleans())
def test_outputs_lie_between_the_values(shape: tuple[int, int], seed: int, scale: float, causal: bool) -> None:
    q, k, v = rows(shape, seed, scale)
    y = attend(q, k, v, causal=causal)
    assert (y <= v.amax(1, keepdim=True) + 1e-9).all()
    assert (y >= v.amin(1, keepdim=True) - 1e-9).all()


@quick
@given(shapes, seeds, st.data())
def test_the_future_changes_nothing(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    q, k, v = rows(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    changed = [torch.cat([x[:, :cut], x[:, cut:] * -2.5 + 1], 1) for x in (q, k, v)]
    assert torch.equal(attend(*changed)[:, :cut], attend(q, k, v)[:, :cut])


@quick
@given(shapes, seeds, st.data())
def test_sequences_of_a_batch_do_not_meet(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    inputs = rows(shape, seed)
    one = data.draw(st.integers(0, shape[0] - 1))
    assert torch.equal(attend(*[x[one : one + 1] for x in inputs]), attend(*inputs)[one : one + 1])


@quick
@given(shapes, seeds)
def test_without_a_mask_order_does_not_matter(shape: tuple[int, int], seed: int) -> None:
    q, k, v = rows(shape, seed)
    shuffle = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    close(attend(q, k[:, shuffle], v[:, shuffle], causal=False), attend(q, k, v, causal=False))


@quick
@given(shapes, seeds, scales, st.data())
def test_parts_joined_by_the_state_equal_the_whole(shape: tuple[int, int], seed: int, scale: float, data: st.DataObject) -> None:
    inputs = rows(shape, seed, scale)
    cut = data.draw(st.integers(0, shape[1]))
    state, parts = ops.elementwise_attention_init_state(shape[0], CHANNELS, order=2, dtype=torch.float64), []
    for piece in ([x[:, :cut] for x in inputs], [x[:, cut:] for x in inputs]):
        if piece[0].shape[1]:
            y, state = ops.elementwise_attention(*piece, order=2, initial_state=state, return_state=True)
            parts.append(y)
    close(torch.cat(parts, 1), attend(*inputs))


@settings(quick, max_examples=15)
@given(st.tuples(st.integers(1, 2), st.integers(1, 12)), seeds, scales)
def test_steps_equal_the_parallel_form(shape: tuple[int, int], seed: int, scale: float) -> None:
    inputs = rows(shape, seed, scale)
    state = ops.elementwise_attention_init_state(shape[0], CHANNELS, order=2, dtype=torch.float64)
    steps = []
    for i in range(shape[1]):
        y, state = ops.elementwise_attention_step(*[x[:, i] for x in inputs], state)
        steps.append(y)
    close(torch.stack(steps, 1), attend(*inputs))


@quick
@given(shapes, seeds)
def test_a_state_survives_being_saved(shape: tuple[int, int], seed: int) -> None:
    import io

    _, state = ops.elementwise_attention(*rows(shape, seed), order=2, initial_state=empty(shape[0]), return_state=True)
    file = io.BytesIO()
    torch.save(tuple(state), file)
    file.seek(0)
    again = ElementwiseAttentionState(*torch.load(file, weights_only=True))
    inputs = [x[:, 0] for x in rows(shape, seed + 1)]
    first, second = (ops.elementwise_attention_step(*inputs, s)[0] for s in (state, again))
    assert torch.equal(first, second)


def empty(batch: int) -> ElementwiseAttentionState:
    return ops.elementwise_attention_init_state(batch, CHANNELS, order=2, dtype=torch.float64)


@quick
@given(shapes, seeds)
def test_same_inputs_same_bits(shape: tuple[int, int], seed: int) -> None:
    inputs = [x.requires_grad_() for x in rows(shape, seed)]
    runs = []
    for _ in range(2):
        y = attend(*inputs)
        runs.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
