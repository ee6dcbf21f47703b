"""Multi-head damped EMA: what must hold for any input."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from tilegen import ops

C, N = 3, 2
# One compiled library serves every batch and length, so all examples share a few of them.
quick = settings(max_examples=30, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 70))
seeds = st.integers(0, 2**31)


def draw(shape: tuple[int, int], seed: int, causal: bool = True) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = C if causal else 2 * C
    sizes: list[tuple[int, ...]] = [(*shape, C), *[(rows, N)] * 4, (C,)]
    x, *parameters = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return x, parameters


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@quick
@given(shapes, seeds, st.booleans(), st.floats(-3, 3))
def test_the_filter_is_linear(shape: tuple[int, int], seed: int, causal: bool, factor: float) -> None:
    (x, parameters), (other, _) = draw(shape, seed, causal), draw(shape, seed + 1)
    filtered = lambda x: ops.ema(x, *parameters, causal=causal)
    close(filtered(x + factor * other), filtered(x) + factor * filtered(other))


@quick
@given(shapes, seeds, st.integers(0, 20))
def test_a_delayed_input_gives_a_delayed_output(shape: tuple[int, int], seed: int, delay: int) -> None:
    x, parameters = draw(shape, seed)
    late = torch.cat([torch.zeros(shape[0], delay, C, dtype=x.dtype), x], 1)
    close(ops.ema(late, *parameters)[:, delay:], ops.ema(x, *parameters))


@quick
@given(shapes, seeds, st.data())
def test_the_future_changes_nothing(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    x, parameters = draw(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    changed = torch.cat([x[:, :cut], x[:, cut:] * -2.5 + 1], 1)
    assert torch.equal(ops.ema(changed, *parameters)[:, :cut], ops.ema(x, *parameters)[:, :cut])


@quick
@given(shapes, seeds)
def test_reversed_time_swaps_the_directions(shape: tuple[int, int], seed: int) -> None:
    x, parameters = draw(shape, seed, causal=False)
    swapped = [torch.cat([p[C:], p[:C]]) for p in parameters[:4]]
    y = ops.ema(x.flip(1), *swapped, parameters[4], causal=False)
    close(y.flip(1), ops.ema(x, *parameters, causal=False))


@quick
@given(shapes, seeds)
def test_the_bidirectional_form_is_both_causal_ones_with_lag_zero_twice(shape: tuple[int, int], seed: int) -> None:
    x, parameters = draw(shape, seed, causal=False)
    first, second = ([p[rows] for p in parameters[:4]] for rows in (slice(C), slice(C, None)))
    none = torch.zeros(C, dtype=x.dtype)
    ahead = ops.ema(x, *first, parameters[4])
    back = ops.ema(x.flip(1), *second, none).flip(1)
    close(ops.ema(x, *parameters, causal=False), ahead + back)


@quick
@given(shapes, seeds, st.booleans(), st.data())
def test_sequences_of_a_batch_do_not_meet(shape: tuple[int, int], seed: int, causal: bool, data: st.DataObject) -> None:
    x, parameters = draw(shape, seed, causal)
    one = data.draw(st.integers(0, shape[0] - 1))
    alone = ops.ema(x[one : one + 1], *parameters, causal=causal)
    assert torch.equal(alone, ops.ema(x, *parameters, causal=causal)[one : one + 1])


@quick
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(sum), seeds, st.booleans())
def test_packed_sequences_do_not_meet(lengths: list[int], seed: int, causal: bool) -> None:
    x, parameters = draw((1, sum(lengths)), seed, causal)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    alone = [ops.ema(part, *parameters, causal=causal) for part in x.split(lengths, 1) if part.shape[1]]
    assert torch.equal(ops.ema(x, *parameters, causal=causal, cu_seqlens=bounds), torch.cat(alone, 1))


@quick
@given(shapes, seeds, st.data())
def test_parts_joined_by_the_state_equal_the_whole(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    x, parameters = draw(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    h, parts = ops.ema_init_state(shape[0], C, N, dtype=torch.float64), []
    for piece in (x[:, :cut], x[:, cut:]):
        if piece.shape[1]:
            y, h = ops.ema(piece, *parameters, initial_state=h, return_state=True)
            parts.append(y)
    close(torch.cat(parts, 1), ops.ema(x, *parameters))


@settings(quick, max_examples=15)
@given(st.tuples(st.integers(1, 2), st.integers(1, 12)), seeds)
def test_steps_equal_the_parallel_form(shape: tuple[int, int], seed: int) -> None:
    x, parameters = draw(shape, seed)
    h, steps = ops.ema_init_state(shape[0], C, N, dtype=torch.float64), []
    for t in range(shape[1]):
        y, h = ops.ema_step(x[:, t], *parameters, h)
        steps.append(y)
    whole, end = ops.ema(x, *parameters, return_state=True)
    close(torch.stack(steps, 1), whole)
    close(h, end)


@quick
@given(shapes, seeds, st.booleans())
def test_same_inputs_same_bits(shape: tuple[int, int], seed: int, causal: bool) -> None:
    x, parameters = draw(shape, seed, causal)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    runs = []
    for _ in range(2):
        y = ops.ema(*leaves, causal=causal)
        runs.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
