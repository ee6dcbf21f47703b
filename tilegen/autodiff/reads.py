"""One read of a stage, inverted: from X[g(i, r)] to a term over the elements of X."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te

from tilegen.autodiff.ranges import prune
from tilegen.autodiff.simplify import simplify_indices
from tilegen.autodiff.solver import Domain, Inverse, Unsolvable, invert
from tilegen.autodiff.term import Term, guarded
from tilegen.errors import AutodiffError
from tilegen.expression.printer import text
from tilegen.expression.walkers import Expr, has_load, load_tensor, size_estimate, substitute


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


def solution(inverse: Inverse, target: list[Any], shape: list[Expr], guards: list[Expr], expr: Expr) -> Term:
    """The term that an inverse gives: everything in the target and the free variables."""
    domain = list(zip(target, shape, strict=True)) + inverse.free
    where = prune([substitute(g, inverse.solved) for g in guards] + inverse.guards, inverse.analyzer)
    where = [simplify_indices(g, inverse.analyzer, domain) if has_load(g) else g for g in where]
    value = simplify_indices(substitute(expr, inverse.solved), inverse.analyzer, domain)
    return Term(target, guarded(where, value), inverse.free)


def account(op: te.ComputeOp, load: Expr, term: Term, domain: Domain, inverse: Inverse, notes: list[Note], limit: float) -> None:
    """Note what was done, and refuse an adjoint that enumerates far more points than the forward had."""
    shape = load_tensor(load).shape
    elements, forward = size_estimate(shape), size_estimate(n for _, n in domain)
    waste = elements * size_estimate(n for _, n in inverse.free) / max(elements, forward)
    summed = tuple(f"{v.name}:{text(n)}" for v, n in inverse.free)
    conditions = tuple(text(g) for g in inverse.guards if not inverse.analyzer.can_prove(g))
    notes.append(Note(op.name, text(load), summed, conditions, waste, bool(inverse.masks)))
    if waste > limit:
        raise AutodiffError(
            f"stage '{op.name}' reads {text(load)}, which cannot be inverted: enumerating it costs {waste:.0f} times the "
            f"forward, the limit is {limit:g}; write the index in block coordinates, or as a gather with an index tensor"
        )
