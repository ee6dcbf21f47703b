"""Which reductions are convolutions: sums of products in which a result's position and the reduced one meet in one sum.

::

    y[.., p, c] = sum_{.., r} taps[r] signal[q]        q = p + sign r

with taps and signal any expressions of the other axes.  All directions of a convolution have this form: its values (p = t,
r = tap, q = t - tap), the gradient of the signal (q = t + tap), and that of the taps (p = tap, r = t, q = tap - t).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tvm import ir, sym, te, tirx

from tilegen.expression.walkers import (
    call_name,
    factors,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    substitute,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.kernel import Kernel

COMPARISONS = (prim.LT, prim.LE, prim.GT, prim.GE)


@dataclass(frozen=True)
class Convolution:
    """A convolution as a kernel computes it.

    Parameters
    ----------
    sum : the reduction.
    axis, over : the place of p among its axes, and of r among its reduced axes; the other reduced axes are summed as well.
    sign : 1 or -1.
    at : the variable q.
    taps, signal : factors; `taps` have r and not p, `signal` has q and neither of the two.
    conditions : under which a term is not 0, in q.
    lower, upper : outside of lower <= q < upper the signal is 0 for certain; None where nothing is known.
    """

    sum: te.Tensor
    axis: int
    over: int
    sign: int
    at: Any
    taps: tuple[Any, ...]
    signal: tuple[Any, ...]
    conditions: tuple[Any, ...]
    lower: Any
    upper: Any


def convolution(kernel: Kernel) -> Convolution | None:
    """The convolution that a kernel computes and nothing else, along an axis before its last one; None for other kernels."""
    scans = [a for a in kernel.anchors if stages.kind(a) != "reduce"]
    if kernel.pattern not in ("walk", "reduce") or kernel.emits or kernel.latches or scans or len(kernel.anchors) != 1:
        return None
    return _of(kernel.anchors[0])


@lru_cache(maxsize=1 << 12)
def _of(anchor: te.Tensor) -> Convolution | None:
    if stages.reduction(anchor) != "sum" or len(anchor.shape) < 2:
        return None
    terms, conditions = _product(stages.body(anchor))
    own, over = stages.axes(anchor), [axis.var for axis in stages.reduce_axes(anchor)]
    for axis in range(len(own) - 1):
        for reduced in range(len(over)):
            for sign in (-1, 1):
                found = _with(anchor, axis, reduced, sign, terms, conditions)
                if found is not None:
                    return found
    return None


def _product(expr: Any) -> tuple[list[Any], list[Any]]:
    """The factors of a guarded product, and the conditions without which it is 0."""
    terms: list[Any] = []
    conditions: list[Any] = []
    for factor in factors(expr):
        if call_name(factor) == "if_then_else" and is_const(factor.args[2], 0):
            conditions += _conjuncts(factor.args[0])
            more, inner = _product(factor.args[1])
            terms, conditions = terms + more, conditions + inner
        else:
            terms.append(factor)
    return terms, conditions


def _conjuncts(condition: Any) -> list[Any]:
    if isinstance(condition, prim.And):
        return _conjuncts(condition.a) + _conjuncts(condition.b)
    return [condition]


def _with(anchor: te.Tensor, axis: int, over: int, sign: int, terms: list[Any], conditions: list[Any]) -> Convolution | None:
    """The convolution along these axes, if what depends on p does so through q alone."""
    p, r, q = stages.axes(anchor)[axis], stages.reduce_axes(anchor)[over].var, tirx.Var("q", "int32")
    analyzer = sym.Analyzer()
    there = {r: q - p if sign > 0 else p - q}
    taps = [e for e in terms if not _has(e, p)]
    signal = [_simplified(substitute(e, there), analyzer) for e in terms if _has(e, p)]
    guards = [_simplified(substitute(e, there), analyzer) for e in conditions]
    if any(_has(e, p) or _has(e, r) for e in [*signal, *guards]):
        return None
    if not any(_has(e, q) for e in signal) or not any(_has(e, r) for e in taps):
        return None
    bounds = [_bounds(guard, q, analyzer) for guard in guards]
    lower = next((low for low, _ in bounds if low is not None), None)
    upper = next((high for _, high in bounds if high is not None), None)
    return Convolution(anchor, axis, over, sign, q, tuple(taps), tuple(signal), tuple(guards), lower, upper)


def _simplified(expr: Any, analyzer: Any) -> Any:
    """`expr` with the indices of its reads and its comparisons simplified."""

    def load(call: Any) -> Any:
        return load_tensor(call)(*[analyzer.simplify(i) for i in load_indices(call)]) if is_load(call) else call

    return analyzer.simplify(expr) if isinstance(expr, COMPARISONS) else rewrite(expr, ir.Call, load)


def _bounds(condition: Any, q: Any, analyzer: Any) -> tuple[Any, Any]:
    """(lower, upper) of q where a comparison says lower <= q or q < upper."""
    if not isinstance(condition, COMPARISONS):
        return None, None
    small, large = (condition.a, condition.b) if isinstance(condition, (prim.LT, prim.LE)) else (condition.b, condition.a)
    strict = isinstance(condition, (prim.LT, prim.GT))
    low, high = analyzer.simplify(small - large + q), analyzer.simplify(large - small + q)
    if not _has(low, q):
        return low + 1 if strict else low, None
    if not _has(high, q):
        return None, high if strict else high + 1
    return None, None


def _has(expr: Any, var: Any) -> bool:
    return any(v.same_as(var) for v in variables(expr))
