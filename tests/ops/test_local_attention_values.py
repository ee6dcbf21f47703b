"""Local attention: values and gradients in float64 against all pairs with a mask, states, and what must hold for any input."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tilegen import ops
from tilegen.ops.local_attention import Config, reference

W, D, E, H = 9, 10, 9, 2
CHUNK = 12
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"kind": "relu2", "causal": False, "bias": True},
    {"causal": False, "scale": 0.7},
    {"kind": "relu2"},
]


def name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def draw(options: dict[str, Any], batch: int, time: int, seed: int = 0) -> list[Tensor]:
    """q, k, v and the biases if there are any, in float64."""
    generator = torch.Generator().manual_seed(seed + time)
    shapes: list[tuple[int, ...]] = [(batch, time, H, D), (batch, time, H, D), (batch, time, H, E)]
    if options.get("bias"):
        shapes.append((H, W + 1 if options.get("causal", True) else 2 * W + 1))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def attend(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, *bias: Tensor, **more: Any) -> Any:
    table = bias[0] if bias else None
    given = {key: value for key, value in options.items() if key != "bias"}
    return ops.local_attention(q, k, v, window=W, chunk=CHUNK, bias=table, **given, **more)


@pytest.mark.parametrize("time", [1, 2, 9, 12, 13, 25, 50], ids="T{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_values_and_gradients_are_those_of_all_pairs_with_a_mask(options: dict[str, Any], time: int) -> None:
    inputs = draw(options, 2, time)
    o = attend(options, *inputs)
    (expected,) = reference.forward(Config(W, **options), *inputs)
    torch.testing.assert_close(o, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(o)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seed) for y in (o, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS[1:3], ids=name)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    inputs = draw(options, 1, 4)
    assert torch.autograd.gradcheck(lambda *x: attend(options, *x), inputs, fast_mode=True)


def test_gradients_through_initial_and_final_state() -> None:
    past, inputs = draw({}, 2, 7), draw({}, 2, 5)
    _, state = attend({}, *past, return_state=True)
    rows = [x.detach().requires_grad_() for x in state[:2]]

    def run(k: Tensor, v: Tensor, *inputs: Tensor) -> list[Tensor]:
        o, after = attend({}, *inputs, initial_state=ops.LocalAttentionState(k, v, state.held), return_state=True)
        return [o, after.k, after.v]

    assert torch.autograd.gradcheck(run, (*rows, *inputs), fast_mode=True)


def test_rotary_positions_turn_queries_and_keys() -> None:
    q, k, v = draw({}, 2, 13)
    positions = torch.tensor([0, 3, 4, 9, 12, 100, 101, 1000, 1001, 1002, 1003, 50000, 50001]).expand(2, -1)
    got = attend({}, q, k, v, positions=positions)
    turned = [reference.rotary(x, positions) for x in (q, k)]
    expected = reference.forward(Config(W), *turned, v)[0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    shifted = attend({}, q, k, v, positions=positions + 12345)
    torch.testing.assert_close(got, shifted, rtol=1e-9, atol=1e-9)  # only differences matter
    angle = torch.tensor(3.0 * 1e4 ** (-2 / D), dtype=torch.float64)  # position 3, second pair
    first = q[0, 1, 0, 2] * angle.cos() - q[0, 1, 0, 3] * angle.sin()
    torch.testing.assert_close(turned[0][0, 1, 0, 2], first)


quick = settings(max_examples=20, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 40))
seeds = st.integers(0, 2**31)


@quick
@given(shapes, seeds, st.data())
def test_what_is_outside_the_window_changes_nothing(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    q, k, v = draw({}, *shape, seed)
    at = data.draw(st.integers(0, shape[1] - 1))
    o = attend({}, q, k, v)
    k2, v2 = (torch.cat([x[:, :at], x[:, at : at + 1] * -2.5 + 1, x[:, at + 1 :]], 1) for x in (k, v))
    changed = attend({}, q, k2, v2)
    assert torch.equal(changed[:, :at], o[:, :at])
    assert torch.equal(changed[:, at + W + 1 :], o[:, at + W + 1 :])
    assert not torch.equal(changed[:, at], o[:, at])


@quick
@given(shapes, seeds)
def test_constant_values_give_a_constant(shape: tuple[int, int], seed: int) -> None:
    q, k, v = draw({}, *shape, seed)
    v = v[:, :1].expand(v.shape)
    torch.testing.assert_close(attend({}, q, k, v), v, rtol=1e-10, atol=1e-10)


@quick
@given(shapes, seeds, st.data())
def test_sequences_of_a_batch_do_not_meet(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    inputs = draw({}, *shape, seed)
    one = data.draw(st.integers(0, shape[0] - 1))
    assert torch.equal(attend({}, *[x[one : one + 1] for x in inputs]), attend({}, *inputs)[one : one + 1])


@quick
@given(shapes, seeds, st.data())
def test_parts_joined_by_the_state_equal_the_whole(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    inputs = draw({}, *shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    state = ops.local_attention_init_state(shape[0], H, D, E, window=W, dtype=torch.float64)
    parts = []
    for piece in ([x[:, :cut] for x in inputs], [x[:, cut:] for x in inputs]):
        if piece[0].shape[1]:
            o, state = attend({}, *piece, initial_state=state, return_state=True)
            parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), attend({}, *inputs), rtol=1e-10, atol=1e-10)
    assert state.held.tolist() == [min(W, shape[1])] * shape[0]


@settings(quick, max_examples=8)
@given(st.tuples(st.integers(1, 2), st.integers(1, 24)), seeds)
def test_steps_equal_the_parallel_form(shape: tuple[int, int], seed: int) -> None:
    inputs = draw({}, *shape, seed)
    state = ops.local_attention_init_state(shape[0], H, D, E, window=W, dtype=torch.float64)
    steps = []
    for t in range(shape[1]):
        o, state = ops.local_attention_step(*[x[:, t] for x in inputs], state)
        steps.append(o)
    torch.testing.assert_close(torch.stack(steps, 1), attend({}, *inputs), rtol=1e-10, atol=1e-10)


@quick
@given(shapes, seeds)
def test_same_inputs_same_bits(shape: tuple[int, int], seed: int) -> None:
    inputs = draw({"bias": True}, *shape, seed)
    runs = []
    for _ in range(2):
        o = attend({"bias": True}, *inputs)
        runs.append((o, *torch.autograd.grad(o.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("options", [{}, {"kind": "relu2", "causal": False, "bias": True}], ids=name)
def test_wide_values_are_those_of_narrow_ones_side_by_side(options: dict[str, Any], packed: bool) -> None:
    """They are cut into heads that share weights; the gradient of each weight is a sum over them."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 21, H, n, generator=generator, dtype=torch.float64) for n in (D, D, 272))
    table = [torch.randn(H, 2 * W + 1, generator=generator, dtype=torch.float64)] if options else []
    inputs = [x.requires_grad_() for x in (q, k, v, *table)]
    bounds = [0, 8, 8, 21] if packed else [0, 21]
    more = {"cu_seqlens": torch.tensor(bounds, dtype=torch.int32)} if packed else {}
    o = attend(options, *inputs, **more)
    parts = [[x[:, a:b] for x in inputs[:3]] for a, b in itertools.pairwise(bounds) if a < b]
    expected = torch.cat([reference.forward(Config(W, **options), *part, *inputs[3:])[0] for part in parts], 1)
    torch.testing.assert_close(o, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(o)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seed) for y in (o, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
