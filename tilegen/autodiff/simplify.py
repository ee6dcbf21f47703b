"""Making an adjoint term what a schedule rule expects to see.

Small reductions that are no matrix products are unrolled into the expression, factors that do not depend on the
reduce axes are hoisted out of the sum, and the guards of a matrix product move onto its operands, as padded stages
that a schedule inlines into its copies.  Only indices and guards are simplified, never float arithmetic.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import tvm_ffi
from tvm import ir, te, tirx

from tilegen.autodiff.derivative import multiply
from tilegen.autodiff.ranges import analyzer, conjuncts, holds, prune
from tilegen.autodiff.solver import Domain, canonical
from tilegen.autodiff.term import Term, guarded
from tilegen.expression.stages import compute
from tilegen.expression.walkers import (
    Expr,
    call_name,
    const_int,
    dtype_of,
    factors,
    has_load,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    same,
    size_estimate,
    substitute,
    total,
    variables,
)

UNROLL = 8
"""Reductions of at most this many points become part of the expression, unless they are matrix products."""

PAD_GROWTH = 4
"""A padded operand may have this many times the elements of its tensor; beyond, it would be an im2col."""


def simplify_indices(expr: Expr, ana: Any, domain: Domain) -> Expr:
    """`expr` with the indices of all reads simplified, and divisions elsewhere."""

    def fix(call: Any) -> Any:
        if not is_load(call):
            return call
        return load_tensor(call)(*[canonical(ana.simplify(i), domain) for i in load_indices(call)])

    divisions = ((prim.FloorMod, ana.simplify), (prim.FloorDiv, ana.simplify))
    return rewrite(tvm_ffi.structural_map(expr, divisions), ir.Call, fix)


def split_guard(expr: Expr) -> tuple[list[Expr], Expr]:
    """The conditions under which `expr` is not literally zero, and its value there."""
    if call_name(expr) == "if_then_else" and is_const(expr.args[2], 0):
        conditions, value = split_guard(expr.args[1])
        return conjuncts(expr.args[0]) + conditions, value
    return [], expr


def unroll(term: Term, shape: Sequence[Expr]) -> Term:
    """A term whose sum has at most `UNROLL` points as an expression without a sum; a condition that names one point leaves that one."""
    extents = [const_int(n) for _, n in term.axes]
    if not extents or any(n is None for n in extents):
        return term
    conditions, value = split_guard(term.body)
    points = [_points(v, n or 0, conditions) for (v, _), n in zip(term.axes, extents, strict=True)]
    if size_estimate(map(len, points)) > UNROLL:
        return term
    domain = list(zip(term.target, shape, strict=True))
    ana = analyzer(domain)
    parts: list[tuple[list[Expr], Expr]] = []
    for point in itertools.product(*points):
        at = {v: tirx.const(p, "int32") for (v, _), p in zip(term.axes, point, strict=True)}
        where = prune([simplify_indices(substitute(c, at), ana, domain) for c in conditions], ana)
        if not any(is_const(c, 0) for c in where):
            parts.append((where, simplify_indices(substitute(value, at), ana, domain)))
    body = guarded_sum(parts) if parts else tirx.const(0, dtype_of(term.body))
    return replace(term, body=body, axes=[], pinned=[])


def _points(variable: Any, extent: int, conditions: Sequence[Expr]) -> range:
    """The values that a summed variable below `extent` may have under some conditions."""
    for condition in conditions:
        if isinstance(condition, prim.EQ) and variable.same_as(condition.a) and (known := const_int(condition.b)) is not None:
            return range(max(known, 0), min(known + 1, extent))
    return range(extent)


def guarded_sum(parts: Sequence[tuple[list[Expr], Expr]]) -> Expr:
    """The sum of guarded parts, the guards that all have in common around it."""
    common = [g for g in parts[0][0] if all(any(same(g, h) for h in guards) for guards, _ in parts)]
    left = [([g for g in guards if not any(same(g, h) for h in common)], part) for guards, part in parts]
    return guarded(common, total([guarded(rest, part) for rest, part in left]))


def hoist(term: Term) -> Term:
    """A term whose constant factors, and without guards inside the sum all independent ones, are outside it."""
    if not term.axes:
        return term
    conditions, value = split_guard(term.body)
    inner = {v for v, _ in term.axes}
    bound = any(inner & set(variables(c)) or has_load(c) for c in conditions)

    def independent(factor: Expr) -> bool:
        return is_literal(factor) if bound else not inner & set(variables(factor))

    above, below = quotient(value)
    outside = _join(filter(independent, above), filter(independent, below), dtype_of(value))
    inside = _join(itertools.filterfalse(independent, above), itertools.filterfalse(independent, below), dtype_of(value))
    if is_const(outside, 1) or is_literal(inside):
        return term
    # Where the sum is empty the factors are neither read nor multiplied: the guards stay on both sides.
    guards = [] if is_literal(outside) else conditions
    return replace(term, body=guarded(conditions, inside), scale=outside, guards=term.guards + guards)


def is_literal(expr: Expr) -> bool:
    """Whether `expr` is a literal."""
    return isinstance(expr, (prim.FloatImm, prim.IntImm))


def quotient(expr: Expr) -> tuple[list[Expr], list[Expr]]:
    """The factors of a product of quotients above and below the line."""
    if isinstance(expr, prim.Mul):
        (a, b), (c, d) = quotient(expr.a), quotient(expr.b)
        return a + c, b + d
    if isinstance(expr, prim.Div):
        (a, b), (c, d) = quotient(expr.a), quotient(expr.b)
        return a + d, b + c
    return [expr], []


def _join(above: Iterable[Expr], below: Iterable[Expr], dtype: str) -> Expr:
    """The product of the factors above the line over that of those below."""
    one = tirx.const(1, dtype)
    top, bottom = (functools.reduce(multiply, parts, one) for parts in (above, below))
    return top if is_const(bottom, 1) else top / bottom


def is_contraction(a: Expr, b: Expr, inner: set[Any]) -> bool:
    """Whether summing ``a * b`` over `inner` is a matrix product: either has an index that the other lacks."""
    left, right = set(variables(a)) - inner, set(variables(b)) - inner
    both = inner & set(variables(a)) & set(variables(b))
    return bool(left - right and right - left and both)


def peel(term: Term, shape: Sequence[Expr]) -> Term:
    """A guarded matrix product as a plain one of padded operands.

    Every operand whose read is not provably in bounds has to be padded, since 0 * garbage is not 0.
    """
    conditions, product = split_guard(term.body)
    parts = factors(product)
    if not conditions or not _is_product(term) or any(has_load(c) for c in conditions):
        return term
    extents = dict(zip(term.target, shape, strict=True)) | dict(term.axes)
    ana = analyzer(extents.items())
    bounds = [_in_bounds(part) for part in parts]
    able = [[c for c in conditions if set(variables(c)) & set(extents) <= set(variables(p))] for p in parts]
    chosen = [[] if holds(ana, bounds[k], []) else list(able[k]) for k in range(2)]
    for condition in conditions:
        if not any(condition.same_as(c) for c in chosen[0] + chosen[1]):
            takers = [k for k in range(2) if any(condition.same_as(c) for c in able[k])]
            if not takers:
                return term
            chosen[takers[0]].append(condition)
    padded = []
    for part, claims, guards in zip(parts, bounds, chosen, strict=True):
        used = [v for v in extents if v in set(variables(part))]
        grown = size_estimate(extents[v] for v in used) > PAD_GROWTH * size_estimate(load_tensor(part).shape)
        if not holds(ana, claims, guards) or (guards and grown):
            return term
        padded.append(_pad(part, guards, used, extents) if guards else part)
    return replace(term, body=padded[0] * padded[1])


def _in_bounds(load: Expr) -> list[Expr]:
    claims = []
    for i, n in zip(load_indices(load), load_tensor(load).shape, strict=True):
        claims += [i >= 0, i < n]
    return claims


def _pad(load: Expr, guards: Sequence[Expr], used: Sequence[Any], extents: dict[Any, Expr]) -> Expr:
    body = guarded(guards, load)
    shape = [extents[v] for v in used]
    name = f"{load_tensor(load).op.name}_pad"
    names = [v.name for v in used]
    return compute(shape, lambda *i: substitute(body, dict(zip(used, i, strict=True))), name, axes=names)(*used)


def split_products(term: Term) -> list[Term]:
    """A sum of matrix products as one term for each, so that every one is a plain contraction."""
    conditions, value = split_guard(term.body)
    if not term.axes or not isinstance(value, prim.Add):
        return [term]
    inner = {v for v, _ in term.axes}
    addends = _addends(value)
    for addend in addends:
        reads = [f for f in factors(addend) if not is_literal(f)]
        if len(reads) != 2 or not all(map(is_load, reads)) or not is_contraction(*reads, inner):
            return [term]
    return [replace(term, body=guarded(conditions, a)) for a in addends]


def _addends(expr: Expr) -> list[Expr]:
    return _addends(expr.a) + _addends(expr.b) if isinstance(expr, prim.Add) else [expr]


def simplify(term: Term, tensor: te.Tensor) -> list[Term]:
    """The terms that schedule rules should see in place of `term`, a contribution to the adjoint of `tensor`."""
    result = []
    for part in split_products(term):
        hoisted = hoist(part)
        # A matrix product stays one however small: unrolled, every element of its operands would be computed at each use.
        small = part if _is_product(hoisted) else unroll(part, tensor.shape)
        result.append(small if not small.axes else peel(hoisted, tensor.shape))
    return result


def _is_product(term: Term) -> bool:
    """Whether a term is the sum of a matrix product, guards aside."""
    parts = factors(split_guard(term.body)[1])
    return len(parts) == 2 and all(map(is_load, parts)) and is_contraction(*parts, {v for v, _ in term.axes})
