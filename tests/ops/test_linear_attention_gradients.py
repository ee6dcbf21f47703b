"""Linear attention: values and gradients in float64 against the definitions and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import linear_attention_cases as cases
from tilegen.ops.linear_attention import reference

STATES = {"initial_state": True, "return_state": True}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": False, "scale": 0.7},
    {"normalize": True},
    {"causal": False, "normalize": True},
    {"decay": "head", **STATES},
    {"decay": "token"},
    {"decay": "token", "normalize": True, **STATES},
]


@pytest.mark.parametrize("options", OPTIONS, ids=cases.name)
def test_gradients_of_all_inputs_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    given = cases.rows(2, 7, options)
    names, leaves = list(given), [x.requires_grad_() for x in given.values()]
    assert torch.autograd.gradcheck(lambda *x: cases.call(options, **dict(zip(names, x, strict=True))), leaves)


@pytest.mark.parametrize("time", [1, 2, 4, 5, 6, 13, 127], ids="T{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=cases.name)
def test_values_and_gradients_are_those_of_the_recurrence(options: dict[str, Any], time: int) -> None:
    given = cases.rows(2, time, options)
    leaves = [x.requires_grad_() for x in given.values()]
    made = cases.call(options, **given)
    expected = reference.forward(cases.config(options), **given)
    assert len(made) == len(expected)
    seeds = [torch.randn_like(y) for y in made]
    both = [(*outs, *torch.autograd.grad(outs, leaves, seeds)) for outs in (made, expected)]
    for got, wanted in zip(*both, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize("time", [1, 7], ids="T{}".format)
def test_tiles_of_one_position(time: int) -> None:
    """The tile of a decoding step, here for every position of a sequence."""
    test_values_and_gradients_are_those_of_the_recurrence({"decay": "token", "normalize": True, "chunk": 1, **STATES}, time)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "initial_state" not in o], ids=cases.name)
def test_the_recurrence_is_the_pairwise_definition(options: dict[str, Any]) -> None:
    given, config = cases.rows(2, 23, options), cases.config(options)
    (expected,) = reference.pairwise(config, **given)
    torch.testing.assert_close(reference.forward(config, **given)[0], expected, rtol=1e-11, atol=1e-11)
    if "decay" not in options:
        torch.testing.assert_close(reference.chunked(config, **given)[0], expected, rtol=1e-11, atol=1e-11)


def test_gradients_of_a_sequence_in_parts_are_those_of_the_whole() -> None:
    options = {"decay": "token", "normalize": True, **STATES}
    given = {name: x.requires_grad_() for name, x in cases.rows(2, 19, options).items()}
    whole = cases.call(options, **given)
    state, parts = {name: given[name] for name in ("S", "z")}, []
    for start, stop in ((0, 7), (7, 8), (8, 19)):
        piece = {name: given[name][:, start:stop] for name in ("q", "k", "v", "decay")}
        o, S, z = cases.call(options, **piece, **state)
        state = {"S": S, "z": z}
        parts.append(o)
    joined = (torch.cat(parts, 1), state["S"], state["z"])
    seeds = [torch.randn_like(y) for y in whole]
    leaves = list(given.values())
    for a, b in zip(*(torch.autograd.grad(outs, leaves, seeds) for outs in (joined, whole)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
