"""Counting the float operations of a graph, and saying what kind of stage each one is.

Every stage counts once, and inside a stage every distinct subexpression once, as a compiler emits it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Flops:
    """Float operations of a graph: its own, and those that only repeat what a stage of the forward computes."""

    own: int
    repeated: int


def flops(outputs: Iterable[te.Tensor], sizes: Mapping[str, int] | None = None) -> int:
    """Float operations of the graph below `outputs`; `sizes` gives symbolic sizes by name."""
    return sum(_stage(op, sizes or {}, frozenset()).own for op in topological(outputs))


def adjoint_flops(adjoints: Iterable[te.Tensor], outputs: Iterable[te.Tensor], sizes: Mapping[str, int] | None = None) -> Flops:
    """Float operations of adjoints in the stages that are not those of the forward graph below `outputs`."""
    forward = topological(outputs)
    known = frozenset(k for op in forward if isinstance(op, te.ComputeOp) for k in _operations(op, frozenset()))
    stages = [_stage(op, sizes or {}, known) for op in topological(adjoints) if op not in set(forward)]
    return Flops(sum(s.own for s in stages), sum(s.repeated for s in stages))


def _stage(op: te.Operation, sizes: Mapping[str, int], known: frozenset[Any]) -> Flops:
    if isinstance(op, te.PlaceholderOp):
        return Flops(0, 0)
    if not isinstance(op, te.ComputeOp):
        spec = scan_spec(op)
        each = 1 if spec is None else {"sum": 2 if spec.decay else 1, "logsumexp": 5}.get(spec.kind, 1)
        return Flops(each * elements((op.inputs[0] if scatter_spec(op) else op.output(0)).shape, sizes), 0)
    points = elements([axis.dom.extent for axis in _axes(op)], sizes)
    counted = list(_operations(op, known).values())
    added = 1 if isinstance(op.body[0], tirx.Reduce) else 0
    return Flops(points * (counted.count(False) + added), points * counted.count(True))


def _axes(op: te.ComputeOp) -> list[tirx.IterVar]:
    body = op.body[0]
    return list(op.axis) + (list(body.axis) if isinstance(body, tirx.Reduce) else [])


def _operations(op: te.ComputeOp, known: frozenset[Any]) -> dict[Any, bool]:
    """The float operations of a stage, equal ones once, and whether each is `known`; a change of sign is none."""
    place = {axis.var: ("axis", k) for k, axis in enumerate(_axes(op))}
    found: dict[Any, bool] = {}

    def visit(e: Expr) -> Any:
        key = _node(e, place, tuple(map(visit, children(e))))
        negation = isinstance(e, prim.Mul) and (is_const(e.a, -1) or is_const(e.b, -1))
        arithmetic = isinstance(e, ARITHMETIC) or call_name(e) in UNARY or call_name(e) == "pow"
        if arithmetic and is_float(e) and not negation:
            found[key] = key in known
        return key

    body = op.body[0]
    visit(body.source[0] if isinstance(body, tirx.Reduce) else body)
    return found


def _node(e: Expr, place: Mapping[Any, Any], operands: tuple[Any, ...]) -> Any:
    """A hashable value equal for structurally equal expressions, axes counting by their position."""
    if isinstance(e, int):
        return e
    if isinstance(e, ir.Var):
        return place.get(e, e)
    if isinstance(e, (prim.IntImm, prim.FloatImm)):
        return (dtype_of(e), e.value)
    if is_load(e):
        return ("load", load_tensor(e).op, load_tensor(e).value_index, *operands)
    return (type(e).__name__, call_name(e), dtype_of(e), *operands)


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
