"""Adjoint of one computed stage.

For every read X[g(i, r)] in ``Y[i] = reduce_r f(...)`` the contribution is::

    X'[j] = sum over {(i, r) : g(i, r) = j} of  guard * Y'[i] * df/dread

by solving g(i, r) = j for the iteration variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.derivative import combine, pull_back
from tilegen.autodiff.reads import Note, account, solution, solve
from tilegen.autodiff.scatter import scattered
from tilegen.autodiff.simplify import simplify
from tilegen.autodiff.solver import Domain
from tilegen.autodiff.term import Term, fresh, guarded
from tilegen.errors import AutodiffError
from tilegen.expression.stages import check_reduction, compute
from tilegen.expression.walkers import (
    Expr,
    has_load,
    is_load,
    load_indices,
    load_tensor,
    prim,
    same,
    substitute,
    total,
)


@dataclass
class _Read:
    """One read of a stage with everything that reaches it: (guards, adjoint) pairs."""

    load: Expr
    items: list[tuple[tuple[Expr, ...], Expr]]


def stage_terms(
    op: te.ComputeOp, adjoint: te.Tensor, wanted: Any, notes: list[Note], limit: float
) -> list[tuple[te.Tensor, Term]]:
    """The contributions of `op`, whose output has `adjoint`, to the adjoints of the `wanted` tensors it reads."""
    domain = [(axis.var, axis.dom.extent) for axis in op.axis]
    reads = _reads(op, adjoint, wanted)
    if isinstance(op.body[0], tirx.Reduce):
        domain += [(axis.var, axis.dom.extent) for axis in op.body[0].axis]
    terms = []
    for read in reads:
        for term in _read_terms(op, domain, read, notes, limit):
            terms.append((load_tensor(read.load), term))
    return terms


def _reads(op: te.ComputeOp, adjoint: te.Tensor, wanted: Any) -> list[_Read]:
    """The wanted reads of `op` with their adjoints; equal reads are merged, so that x*x gives one term."""
    here = [axis.var for axis in op.axis]
    seed: Expr = adjoint(*here)
    body, value = op.body[0], op.output(0)(*here)
    guards: tuple[Expr, ...] = ()
    if isinstance(body, tirx.Reduce):
        check_reduction(body, op.name)
        source, value = body.source[0], None
        kind = type(body.combiner.result[0])
        if kind in (prim.Max, prim.Min):
            attained, ties = _attained(op, str(adjoint.dtype))
            guards, seed = (attained,), seed / ties
        elif kind is not prim.Add:
            raise AutodiffError(
                f"stage '{op.name}': a reduction by {kind.__name__} has no adjoint; use sum, max or min, "
                "or mark it with stop_gradient"
            )
        body = source
    reads: list[_Read] = []

    def emit(load: Expr, guards: tuple[Expr, ...], part: Expr) -> None:
        if load_tensor(load) not in wanted:
            return
        for read in reads:
            if same(read.load, load):
                read.items.append((guards, part))
                return
        reads.append(_Read(load, [(guards, part)]))

    pull_back(body, seed, emit, op.name, value, guards)
    return reads


def _attained(op: te.ComputeOp, dtype: str) -> tuple[Expr, Expr]:
    """Where the extremum of `op` is attained, and how many elements share its adjoint evenly.

    The extremum is taken again, over the very values it is compared with: the one of the forward may come from
    another kernel and differ in the last bit, and then nothing would attain it.
    """
    reduce, here = op.body[0], [axis.var for axis in op.axis]
    inner, source = [axis.var for axis in reduce.axis], reduce.source[0]
    shape, depth = [axis.dom.extent for axis in op.axis], [axis.dom.extent for axis in reduce.axis]
    if not is_load(source):
        point = [*here, *inner]
        body, names = source, [v.name for v in point]
        place = lambda *i: substitute(body, dict(zip(point, i, strict=True)))
        values = compute(shape + depth, place, f"{op.name}_values", axes=names)
        source = values(*point)

    def over(kind: Callable[..., Expr], value: Callable[[dict[Any, Any]], Expr], name: str) -> te.Tensor:
        axes = [te.reduce_axis((0, n), v.name) for v, n in zip(inner, depth, strict=True)]
        new = {v: axis.var for v, axis in zip(inner, axes, strict=True)}
        body = lambda *i: kind(value(dict(zip(here, i, strict=True)) | new), axis=axes)
        return compute(shape, body, name, axes=[v.name for v in here])

    kind = te.max if isinstance(reduce.combiner.result[0], prim.Max) else te.min
    top = over(kind, lambda m: substitute(source, m), f"{op.name}_again")
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
    attained = tirx.EQ(source, top(*here))
    ties = over(te.sum, lambda m: tirx.if_then_else(substitute(attained, m), one, zero), f"{op.name}_ties")
    return attained, ties(*here)


def _read_terms(op: te.ComputeOp, domain: Domain, read: _Read, notes: list[Note], limit: float) -> Iterable[Term]:
    tensor, indices = load_tensor(read.load), load_indices(read.load)
    common, parts = combine(read.items)
    expr = total([guarded(rest, part) for rest, part in parts])
    renamed = {v: tirx.Var(v.name, "int32") for v, _ in domain}  # every term has variables of its own
    inside = [(renamed[v], n) for v, n in domain]
    indices = [substitute(i, renamed) for i in indices]
    common, expr = [substitute(g, renamed) for g in common], substitute(expr, renamed)
    if any(has_load(i) for i in indices):
        return [scattered(op, read.load, inside, indices, common, expr)]
    target = fresh(tensor)
    inverse = solve(op, read.load, inside, indices, target, list(tensor.shape))
    term = solution(inverse, target, list(tensor.shape), common, expr)
    account(op, read.load, term, inside, inverse, notes, limit)
    return simplify(term, tensor)
