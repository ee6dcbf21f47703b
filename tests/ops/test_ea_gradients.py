"""Element-wise attention: values and gradients in float64 against the definition and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import ops
from tilegen.ops import ElementwiseAttentionState
from tilegen.ops.elementwise_attention import Config, reference

OPTIONS = [
    {"order": 2},
    {"order": 6},
    {"order": 4, "c2": 0.7},
    {"order": 2, "stabilise": False},
    {"order": 2, "causal": False},
    {"order": 4, "causal": False, "stabilise": False},
    {"exact": True},
    {"exact": True, "causal": False, "c2": 1.0},
]


def name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def rows(batch: int, time: int, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(time)
    draw = lambda: torch.randn(batch, time, channels, generator=generator, dtype=torch.float64)
    return [draw().requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    assert torch.autograd.gradcheck(lambda q, k, v: ops.elementwise_attention(q, k, v, **options), rows(2, 5))


@pytest.mark.parametrize("time", [1, 2, 3, 17, 127], ids="T{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_values_and_gradients_are_those_of_the_pairwise_definition(options: dict[str, Any], time: int) -> None:
    inputs = rows(3, time)
    y = ops.elementwise_attention(*inputs, **options)
    (expected,) = reference.pairwise(Config(**options), *inputs)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(y)
    got, wanted = (torch.autograd.grad(out, inputs, seed) for out in (y, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max().item()))


def meaning(state: ElementwiseAttentionState) -> list[torch.Tensor]:
    """The moments without their shift: what a state stands for.  Only these have derivatives, since m is a constant."""
    scale = torch.exp(-state.m).unsqueeze(-1)
    return [state.A * scale, state.B * scale]


@pytest.mark.parametrize("stabilise", [True, False], ids=["stabilised", "plain"])
def test_gradients_through_initial_and_final_state(stabilise: bool) -> None:
    q, k, v = rows(2, 4)
    past = rows(2, 3)
    _, state = ops.elementwise_attention(*past, order=2, stabilise=stabilise, return_state=True)
    A, B = state.A.detach().requires_grad_(), state.B.detach().requires_grad_()

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> list[torch.Tensor]:
        before = ElementwiseAttentionState(A, B, state.m)
        y, after = ops.elementwise_attention(q, k, v, order=2, stabilise=stabilise, initial_state=before, return_state=True)
        return [y, *meaning(after)]

    assert torch.autograd.gradcheck(run, (q, k, v, A, B))


def test_gradients_of_a_sequence_in_parts_are_those_of_the_whole() -> None:
    inputs = rows(2, 9)
    whole = ops.elementwise_attention(*inputs, order=2)
    state, parts = None, []
    for start, stop in ((0, 4), (4, 9)):
        piece = [x[:, start:stop] for x in inputs]
        if state is None:
            y, state = ops.elementwise_attention(*piece, order=2, return_state=True)
        else:
            y, state = ops.elementwise_attention(*piece, order=2, initial_state=state, return_state=True)
        parts.append(y)
    seed = torch.randn_like(whole)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seed) for y in (torch.cat(parts, 1), whole)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_stabilised_state_serves_the_plain_form_too() -> None:
    past, rest = rows(2, 6), rows(2, 4)
    _, state = ops.elementwise_attention(*past, order=2, return_state=True)
    both = [torch.cat(pair, 1) for pair in zip(past, rest, strict=True)]
    y, _ = ops.elementwise_attention(*rest, order=2, stabilise=False, initial_state=state, return_state=True)
    torch.testing.assert_close(y, ops.elementwise_attention(*both, order=2, stabilise=False)[:, 6:], rtol=1e-10, atol=1e-10)
