"""Analyzers that know the ranges of variables: what can be proved about indices and guards.

Every variable of a symbolic size is at least one: an operator is never called on an empty axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tvm import ir, sym, tirx

from tilegen.expression.walkers import (
    Expr,
    dtype_of,
    has_load,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    same,
    variables,
)

STRONG = sym.ProofStrength.SYMBOLIC_BOUND
LARGEST_SIZE = 1 << 30


def analyzer(domain: Iterable[tuple[Any, Expr]]) -> sym.Analyzer:
    """An analyzer in which every variable of `domain` runs from 0 below its extent."""
    ana = sym.Analyzer()
    for variable, extent in domain:
        bind(ana, variable, extent)
    return ana


def bind(ana: sym.Analyzer, variable: Any, extent: Expr) -> None:
    """Tell `ana` that 0 <= variable < extent, and that every size in `extent` is at least one."""
    assume_sizes(ana, [extent])
    ana.bind(variable, ir.Range(0, extent))


def assume_sizes(ana: sym.Analyzer, extents: Iterable[Expr]) -> None:
    """Tell `ana` that every size in `extents` is at least one."""
    for extent in extents:
        for size in variables(extent):
            if not ana.const_int_bound_is_bound(size):
                ana.bind(size, ir.Range.from_min_extent(1, tirx.const(LARGEST_SIZE, dtype_of(size))))


def holds(ana: sym.Analyzer, claims: Sequence[Expr], conditions: Sequence[Expr]) -> bool:
    """Whether all claims follow from the conditions."""
    if not conditions:
        return all(ana.can_prove(c) or ana.can_prove(c, STRONG) for c in claims)
    with ana.constraint_scope(conditions[0]):
        return holds(ana, claims, conditions[1:])


def conjuncts(condition: Expr) -> list[Expr]:
    """The conditions that `condition` joins by and."""
    if isinstance(condition, prim.And):
        return conjuncts(condition.a) + conjuncts(condition.b)
    return [condition]


def prune(conditions: Iterable[Expr], ana: sym.Analyzer) -> list[Expr]:
    """The conditions one by one, simplified, without those that `ana` proves and without repetitions."""
    kept: list[Expr] = []
    for condition in conditions:
        for c in conjuncts(condition if has_load(condition) else ana.simplify(condition)):
            if not has_load(c) and ana.can_prove(c, STRONG):
                continue
            if not any(same(c, known) for known in kept):
                kept.append(c)
    return kept


class Opaque:
    """Replaces tensor reads by variables, equal reads by the same one, so that an analyzer can reason about them."""

    def __init__(self, ana: sym.Analyzer) -> None:
        self.ana = ana
        self.known: list[tuple[Expr, Any]] = []

    def __call__(self, expr: Expr) -> Expr:
        return rewrite(expr, ir.Call, self._swap) if has_load(expr) else expr

    def _swap(self, call: Any) -> Any:
        if not is_load(call):
            return call
        call = load_tensor(call)(*map(self.ana.simplify, load_indices(call)))
        for load, variable in self.known:
            if same(load, call):
                return variable
        self.known.append((call, tirx.Var(f"read{len(self.known)}", dtype_of(call))))
        return self.known[-1][1]
