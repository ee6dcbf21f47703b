"""Counting the float operations of a graph, and saying what kind of stage each one is.

Every stage counts once, and inside a stage every distinct subexpression once, as a compiler emits it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tvm import ir, sym, te, tirx

from tilegen.autodiff.derivative import UNARY
from tilegen.autodiff.simplify import is_contraction, split_guard
from tilegen.expression.gather import scatter_spec
from tilegen.expression.scan import scan_spec
from tilegen.expression.walkers import (
    Expr,
    call_name,
    children,
    const_int,
    dtype_of,
    factors,
    is_const,
    is_float,
    is_load,
    load_tensor,
    prim,
    substitute,
    topological,
    variables,
)

ARITHMETIC = (prim.Add, prim.Sub, prim.Mul, prim.Div, prim.Max, prim.Min)


def flops(outputs: Iterable[te.Tensor], known: Iterable[te.Operation] = (), sizes: Mapping[str, int] | None = None) -> int:
    """Float operations of the graph below `outputs`, without those of `known`; `sizes` by name of symbolic size."""
    skipped = set(known)
    return sum(stage_flops(op, sizes or {}) for op in topological(outputs) if op not in skipped)


def stage_flops(op: te.Operation, sizes: Mapping[str, int]) -> int:
    """Float operations of one stage."""
    if isinstance(op, te.PlaceholderOp):
        return 0
    if not isinstance(op, te.ComputeOp):
        spec = scan_spec(op)
        each = 1 if spec is None else {"sum": 2 if spec.decay else 1, "logsumexp": 5}.get(spec.kind, 1)
        return each * elements((op.inputs[0] if scatter_spec(op) else op.output(0)).shape, sizes)
    points = elements([axis.dom.extent for axis in op.axis], sizes)
    body = op.body[0]
    if not isinstance(body, tirx.Reduce):
        return points * operations(body)
    points *= elements([axis.dom.extent for axis in body.axis], sizes)
    return points * (operations(body.source[0]) + 1)


def elements(shape: Iterable[Expr], sizes: Mapping[str, int]) -> int:
    """The number of elements of a shape with symbolic sizes given by name."""
    result = 1
    for extent in shape:
        value = const_int(extent)
        if value is None:
            known = {v: tirx.const(sizes[v.name], dtype_of(v)) for v in variables(extent)}
            value = const_int(sym.Analyzer().simplify(substitute(extent, known)))
        result *= value
    return result


def operations(expr: Expr) -> int:
    """Float operations in a scalar expression, equal subexpressions once; a change of sign is none."""
    seen: set[Any] = set()

    def count(e: Expr) -> int:
        key = expression_key(e)
        if key in seen:
            return 0
        seen.add(key)
        negation = isinstance(e, prim.Mul) and (is_const(e.a, -1) or is_const(e.b, -1))
        own = isinstance(e, ARITHMETIC) or call_name(e) in UNARY or call_name(e) == "pow"
        return int(own and is_float(e) and not negation) + sum(map(count, children(e)))

    return count(expr)


def expression_key(expr: Expr) -> Any:
    """A hashable value that is equal for structurally equal expressions."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, ir.Var):
        return expr
    if isinstance(expr, (prim.IntImm, prim.FloatImm)):
        return (dtype_of(expr), expr.value)
    if is_load(expr):
        tensor = load_tensor(expr)
        return ("load", tensor.op, tensor.value_index, *map(expression_key, children(expr)))
    return (type(expr).__name__, call_name(expr), dtype_of(expr), *map(expression_key, children(expr)))


def classify(op: te.ComputeOp) -> str:
    """The kind of a stage: "map", "contraction", "reduce" or "product of n", with "masked" where guarded."""
    body = op.body[0]
    if not isinstance(body, tirx.Reduce):
        return "map"
    inner = {axis.var for axis in body.axis}
    conditions, value = split_guard(body.source[0])
    dependent = [f for f in factors(value) if inner & set(variables(f))]
    mask = "masked " if conditions else ""
    if len(dependent) < 2:
        return f"{mask}reduce"
    if len(dependent) == 2 and is_contraction(*dependent, inner):
        return f"{mask}contraction"
    return f"{mask}product of {len(dependent)}"


def structure(outputs: Iterable[te.Tensor], known: Iterable[te.Operation] = ()) -> Counter[str]:
    """How many stages of each kind the graph below `outputs` has, without those of `known`."""
    skipped = set(known)
    kinds: Counter[str] = Counter()
    for op in topological(outputs):
        if op in skipped or isinstance(op, te.PlaceholderOp):
            continue
        kinds[classify(op) if isinstance(op, te.ComputeOp) else "scan" if scan_spec(op) else "scatter"] += 1
    return kinds
