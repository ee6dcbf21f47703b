"""One read of a stage, inverted: from X[g(i, r)] to a term over the elements of X."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.ranges import bind, prune
from tilegen.autodiff.simplify import simplify_indices
from tilegen.autodiff.solver import Domain, Inverse, Unsolvable, invert
from tilegen.autodiff.term import Term, guarded
from tilegen.errors import AutodiffError
from tilegen.expression.printer import text
from tilegen.expression.walkers import Expr, has_load, load_tensor, size_estimate, substitute

LONG = 1 << 20
"""A symbolic size for cost ratios: so long that tiles of any width are many."""


@dataclass(frozen=True)
class Note:
    """How one read was inverted: what is summed, under which guards, and the cost over the forward's."""

    stage: str
    read: str
    reduce: tuple[str, ...]
    guards: tuple[str, ...]
    waste: float
    masked: bool


def solve(op: te.ComputeOp, load: Expr, domain: Domain, indices: Any, target: Any, shape: Any) -> Inverse:
    try:
        return invert(domain, indices, target, shape)
    except Unsolvable as reason:
        raise AutodiffError(f"stage '{op.name}' reads {text(load)}, which cannot be inverted: {reason}") from None


def solution(inverse: Inverse, target: list[Any], shape: list[Expr], guards: list[Expr], expr: Expr, pin: bool = True) -> Term:
    """The term that an inverse gives: everything in the target and the free variables.

    A sum that exists for one value of a target variable only is not formed for the others, if `pin`.
    """
    rename = {v: tirx.Var(f"{v.name}_", "int32") for v, _ in inverse.free if v.name in {t.name for t in target}}
    solved = {v: substitute(e, rename) for v, e in inverse.solved.items()} | rename
    free = [(rename.get(v, v), n) for v, n in inverse.free]
    domain = list(zip(target, shape, strict=True)) + free
    ana = inverse.analyzer
    for v, n in free:
        if v in rename.values():
            bind(ana, v, n)
    places = [tirx.EQ(j, e) for j, e in inverse.pinned.items()]
    pinned = inverse.pinned if pin and free else {}
    where = [substitute(g, solved) for g in guards] + [substitute(g, rename) for g in inverse.guards]
    if pinned:
        where = [substitute(g, pinned) for g in where]
    where = prune(where if pinned else where + places, ana)
    where = [simplify_indices(g, ana, domain) if has_load(g) else g for g in where]
    value = simplify_indices(substitute(substitute(expr, solved), pinned), ana, domain)
    return Term(target, guarded(where, value), free, None, places if pinned else [], list(pinned))


def account(op: te.ComputeOp, load: Expr, term: Term, domain: Domain, inverse: Inverse, notes: list[Note], limit: float) -> None:
    """Note what was done, and refuse an adjoint that enumerates far more points than the forward had."""
    shape = load_tensor(load).shape
    elements = size_estimate((n for v, n in zip(term.target, shape, strict=True) if v not in term.pinned), LONG)
    forward = size_estimate((n for _, n in domain), LONG)
    waste = elements * size_estimate((n for _, n in inverse.free), LONG) / max(size_estimate(shape, LONG), forward)
    summed = tuple(f"{v.name}:{text(n)}" for v, n in term.axes)
    conditions = tuple(text(g) for g in inverse.guards if not inverse.analyzer.can_prove(g))
    notes.append(Note(op.name, text(load), summed, conditions, waste, bool(inverse.masks)))
    if waste > limit:
        raise AutodiffError(
            f"stage '{op.name}' reads {text(load)}, which cannot be inverted: enumerating it costs {waste:.0f} times the "
            f"forward, the limit is {limit:g}; write the index in block coordinates, or as a gather with an index tensor"
        )
