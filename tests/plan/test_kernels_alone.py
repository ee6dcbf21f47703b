"""A kernel as a function of its own, as a search measures it: its arguments tell all sizes that it needs."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import ir, s_tir

from tilegen.expression.walkers import variables
from tilegen.mechanisms import Instance, get
from tilegen.plan.plan import plan
from tilegen.tune.planned import module_of

CASES: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("fast_multipole_attention", {"D": 8}, {"block": 8, "rank": 2, "levels": 4}),
    ("linear_attention", {"D": 8, "E": 8}, {"chunk": 8, "packed": True}),
]


@pytest.mark.parametrize(("op", "static", "options"), CASES, ids=[op for op, _, _ in CASES])
def test_sizes_are_told_by_an_argument(op: str, static: dict[str, int], options: dict[str, Any]) -> None:
    found = get(op)
    planned = plan(Instance(found, found.config(**options), static, "float32"))
    for function in planned.functions.values():
        for kernel in function.kernels:
            alone, args = function.kernel_func(kernel)
            s_tir.Schedule(module_of(alone), debug_mask=0)  # raises where anything is not defined
            shapes = [list(arg.tensor.shape) for arg in args]
            told = {dim for shape in shapes for dim in shape if isinstance(dim, ir.Var)}
            assert {v for shape in shapes for dim in shape for v in variables(dim)} <= told, kernel.name
