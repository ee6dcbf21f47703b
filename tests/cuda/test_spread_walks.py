"""Walks over tiles whose steps are long, as short walks that leave their states in memory."""

from __future__ import annotations

from typing import Any

import pytest

from tilegen import mechanisms
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.spread import spread
from tilegen.plan.plan import FunctionPlan, plan
from tilegen.plan.tiles import TileKernel, longest


def functions(dtype: str, size: int = 16, **options: Any) -> dict[str, FunctionPlan]:
    mechanism = mechanisms.get("bounded_memory_attention")
    return plan(Instance(mechanism, mechanism.config(**options), {"D": size, "E": size, "N": size}, dtype)).functions


def walked(function: FunctionPlan) -> list[bool]:
    return [isinstance(kernel, TileKernel) and kernel.walked is not None for kernel in function.kernels]


def states(function: FunctionPlan) -> set[str]:
    """The dtypes of what kernels leave for others, one [N, D] for every tile."""
    return {str(arg.tensor.dtype) for arg in function.args if arg.role == "workspace" and len(arg.tensor.shape) == 5}


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [("bfloat16", {"bfloat16"}, {"bfloat16", "float32"}), ("float32", {"float32"}, {"float32"})],
)
def test_tiles_between_walks_wait_for_nobody(dtype: str, forward: set[str], backward: set[str]) -> None:
    """The states are what tensor cores read of them; what a walk back adds up is as wide as its sums."""
    there, back = (spread(function) for function in functions(dtype).values())
    assert walked(there) == [True, False]
    assert walked(back)[:4] == [True, False, True, False]
    assert (states(there), states(back)) == (forward, backward)
    for function in (there, back):
        ready = function.in_memory()
        walks = [kernel for kernel, walk in zip(function.kernels, walked(function), strict=True) if walk]
        assert all(longest(kernel.anchors, ready - {*kernel.anchors}) <= 1 for kernel in walks)


def test_states_that_a_caller_gets_are_not_rounded() -> None:
    function = spread(functions("bfloat16", initial_state=True, return_state=True)["forward"])
    assert walked(function)[-1] is False
    assert states(function) == {"float32"}


def test_short_steps_stay_a_walk() -> None:
    mechanism = mechanisms.get("linear_attention")
    for function in plan(Instance(mechanism, mechanism.config(), {"D": 16, "E": 16}, "bfloat16")).functions.values():
        assert spread(function) is function


def test_states_take_no_more_memory_than_twice_what_they_are_computed_from() -> None:
    """With few positions in a tile there are many of them."""
    assert [spread(function) is function for function in functions("bfloat16", 64, chunk=16).values()] == [False, True]
    assert [spread(function) is function for function in functions("bfloat16", 64, chunk=32).values()] == [False, False]
