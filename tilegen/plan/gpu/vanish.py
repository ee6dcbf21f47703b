"""Which values are zero where some inputs are: steps behind the end add nothing if these read as zero there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tvm import te, tirx

from tilegen.expression.walkers import const_int, is_load, load_tensor, prim
from tilegen.plan import stages
from tilegen.plan.gpu.walk_strata import reductions_of
from tilegen.plan.kernel import Kernel


def muting(kernel: Kernel) -> te.Tensor | None:
    """What a walk reads at every step that mutes all of its sums where it is zero, or None."""
    sums = reductions_of(kernel)
    if not sums or any(stages.reduction(anchor) != "sum" for anchor in sums):
        return None
    moving = [t for t in kernel.loads if "float" in str(t.dtype) and any(const_int(n) is None for n in t.shape)]
    moving = [t for t in moving if any(stages.equal(n, kernel.extent) for n in t.shape)]
    return next((t for t in moving if all(vanishes(anchor, [t]) for anchor in sums)), None)


def vanishes(tensor: te.Tensor, silent: Collection[te.Tensor]) -> bool:
    """Whether every element of `tensor` is zero where those of `silent` are: each of its terms has one of them as a factor."""
    known: dict[te.Tensor, bool] = {}

    def stage(current: te.Tensor) -> bool:
        if current not in known:
            known[current] = current in silent or (stages.kind(current) in ("map", "reduce") and value(stages.body(current)))
        return known[current]

    def value(expr: Any) -> bool:
        if is_load(expr):
            return stage(load_tensor(expr))
        if isinstance(expr, tirx.Reduce):
            return all(value(source) for source in expr.source)
        if isinstance(expr, prim.Mul):
            return value(expr.a) or value(expr.b)
        if isinstance(expr, prim.Add | prim.Sub):
            return value(expr.a) and value(expr.b)
        if isinstance(expr, prim.Div):
            return value(expr.a)
        return isinstance(expr, prim.Cast) and value(expr.value)

    return stage(tensor)
