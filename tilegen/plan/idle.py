"""Steps of a walk that add nothing: those at which an operand of every product is nothing but zeros.

An operand that is zero where a condition fails is zero in a whole tile when the condition fails at the tile's first element and
the rest lies further out: ``n C + i < count`` holds for no i >= 0 where ``n C < count`` does not.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tilegen.autodiff.ranges import analyzer, conjuncts
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import (
    call_name,
    conjunction,
    const_int,
    factors,
    has_load,
    is_const,
    is_load,
    load_tensor,
    prim,
    same,
    substitute,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.frames import inner, outer, outer_rank
from tilegen.plan.tiles import TileKernel


def busy(kernel: TileKernel, at: list[Any]) -> Any:
    """The condition under which the step at outer point `at` changes a state, as reads of memory; None where every step may."""
    if kernel.walked is None or {scan_inputs(scan.op)["x"] for scan in kernel.anchors} != set(kernel.locals):
        return None
    found: list[Any] = []
    for scan in kernel.anchors:
        spec, x = scan_spec(scan.op), scan_inputs(scan.op)["x"]
        if spec.kind != "sum" or spec.decay or spec.reset or stages.kind(x) != "reduce" or stages.reduction(x) != "sum":
            return None
        operands = [load_tensor(part) for part in factors(stages.body(x)) if is_load(part)]
        parts: list[Any] = []
        for condition in (c for operand in operands for c in _needed(operand, at)):
            parts += [] if any(same(condition, known) for known in parts) else [condition]
        needed = conjunction(parts)
        if needed is None:
            return None
        found.append(needed)
    return tirx.any(*found) if found else None


def steps_with_work(kernel: TileKernel, at: list[Any]) -> Any:
    """How many steps of the walk through outer point `at` may change its one state, as reads of memory; None where all may.

    Steps that may are the first ones: what an operand needs to be more than zeros is a bound, and steps go away from it.
    """
    if len(kernel.anchors) != 1 or kernel.reverse or kernel.walked is None:
        return None
    step = tirx.Var("step", "int32")
    here = [step if k == kernel.walked else i for k, i in enumerate(at)]
    needed = busy(kernel, here)
    ana = analyzer([(step, kernel.extent)])
    count = kernel.extent
    for condition in [] if needed is None else conjuncts(needed):
        if not isinstance(condition, prim.LT) or any(v.same_as(step) for v in variables(condition.b)):
            return None
        first = substitute(condition.a, {step: tirx.const(0, "int32")})
        stride = const_int(ana.simplify(substitute(condition.a, {step: step + 1}) - condition.a))
        if stride is None or stride < 0:
            return None
        if stride == 0:
            count = tirx.Select(condition, count, tirx.const(0, "int32"))
        else:
            count = tirx.min(count, tirx.truncdiv(tirx.max(condition.b - first, 0) + (stride - 1), stride))
    return None if needed is None else count


def _needed(operand: te.Tensor, at: list[Any]) -> list[Any]:
    """Conditions on data without which a tile of `operand` is nothing but zeros."""
    if stages.kind(operand) != "map" or outer_rank(operand) != len(at):
        return []
    body, axes = stages.body(operand), stages.axes(operand)
    if call_name(body) != "if_then_else" or not is_const(body.args[2], 0):
        return []
    own = axes[len(at) :]
    ana = analyzer([*zip(axes, [*outer(operand), *inner(operand)], strict=True)])
    first = {axis: tirx.const(0, "int32") for axis in own}
    found = []
    for condition in conjuncts(body.args[0]):
        if not isinstance(condition, prim.LT) or not has_load(condition):
            continue
        low = substitute(condition.a, first)
        if not any(v.same_as(axis) for v in variables(condition.b) for axis in own) and ana.can_prove(condition.a >= low):
            found.append(substitute(low < condition.b, dict(zip(axes, at, strict=False))))
    return found
