"""Inversion of index maps: solve g(v) = j for the iteration variables v of a stage.

All iteration variables are unknowns with extents.  First the divisions go: ``(v + c) // w`` of one variable
becomes v = w*q + t - c, of several variables a fresh quotient and remainder.  What is left is linear; the
cheapest step is repeated, its cost being the number of points that stay to be enumerated: solve for one
variable, divide ``c*G + R = j`` with 0 <= R < c into two equations, or split a long variable of a strided
window.  Variables that stay free become reduce axes, what the solution does not imply becomes a guard.

TVM's own inverse (`sym.inverse_affine_iter_map`) is not used: for ``i // 4`` it drops the fibre silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx

from tilegen.autodiff.ranges import analyzer, bind
from tilegen.expression.walkers import (
    Expr,
    const_int,
    find,
    prim,
    rewrite,
    substitute,
    total,
    variables,
)

UNBOUNDED = 1 << 30
"""The length that a symbolic extent counts as."""

MAX_STEPS = 64
"""Steps after which an index map is given up; mechanisms need fewer than ten."""

MAX_UNKNOWNS = 24

Domain = Sequence[tuple[Any, Expr]]
"""Iteration variables with their extents."""


class Unsolvable(Exception):
    """An index map that cannot be inverted; the text is the reason and the remedy."""


@dataclass
class Inverse:
    """The solution of ``indices(domain) = target``.

    `solved` maps iteration variables to expressions in the target and the free variables, `free` are the
    variables to sum over, `guards` the conditions under which the solution exists, and `masks` those among
    them that are whole equations left unsolved.  `pinned` maps target variables to what they must equal for any
    solution to exist (a read at a fixed place, a diagonal).
    """

    solved: dict[Any, Expr]
    free: list[tuple[Any, Expr]]
    guards: list[Expr]
    analyzer: sym.Analyzer
    masks: list[Expr] = field(default_factory=list)
    pinned: dict[Any, Expr] = field(default_factory=dict)


def invert(domain: Domain, indices: Sequence[Expr], target: Sequence[Any], shape: Sequence[Expr]) -> Inverse:
    """Solve ``indices(domain) = target`` where `target` are variables that run over `shape`."""
    return _Solver(domain, indices, target, shape).solve()


def canonical(index: Expr, domain: Domain) -> Expr:
    """`index` without differences of parts of one variable: ``i//2 - i%4//2`` becomes ``i//4*2``.

    TVM's `detect_iter_map` divides by zero on the first form, also when it compiles.
    """
    if isinstance(index, int) or len(find(index, _is_division)) < 2:
        return index
    solver = _Solver(domain, [index], [tirx.const(0, "int32")], [])
    solver.split(several=False)
    back: dict[Any, Expr] = {}
    for variable, width, offset, quotient, remainder in solver.splits:  # in order: variable may be an earlier quotient
        whole = substitute(variable, back)
        back[quotient] = tirx.floordiv(whole + offset, width)
        back[remainder] = tirx.floormod(whole + offset, width)
    return analyzer(domain).simplify(substitute(solver.equations[0][0], back))


def linear(expr: Expr, unknowns: Any) -> tuple[dict[Any, int], Expr]:
    """``expr = sum of coefficient * unknown + rest``; the rest may still hold unknowns in other terms."""
    coefficients: dict[Any, int] = {}
    rest: list[Expr] = []

    def walk(e: Expr, factor: int) -> None:
        if isinstance(e, ir.Var) and e in unknowns:
            coefficients[e] = coefficients.get(e, 0) + factor
        elif isinstance(e, prim.Add):
            walk(e.a, factor)
            walk(e.b, factor)
        elif isinstance(e, prim.Sub):
            walk(e.a, factor)
            walk(e.b, -factor)
        elif isinstance(e, prim.Mul) and const_int(e.b) is not None:
            walk(e.a, factor * const_int(e.b))
        elif isinstance(e, prim.Mul) and const_int(e.a) is not None:
            walk(e.b, factor * const_int(e.a))
        else:
            rest.append(e * factor if factor != 1 else e)

    walk(expr, 1)
    return {v: c for v, c in coefficients.items() if c}, total(rest) if rest else tirx.const(0, "int32")


def _is_division(expr: Expr) -> bool:
    return isinstance(expr, (prim.FloorDiv, prim.FloorMod))


@dataclass
class _Step:
    """A possible next step: cost in points enumerated for one target element, then the order among equal costs."""

    cost: int
    order: tuple[int, int]
    run: Callable[[], None]


class _Solver:
    """The state of one inversion: equations ``lhs(unknowns) = rhs``, and what has been found out so far."""

    def __init__(self, domain: Domain, indices: Sequence[Expr], target: Sequence[Any], shape: Sequence[Expr]) -> None:
        self.ana = analyzer(())
        self.extents: dict[Any, Expr] = {}
        self.splits: list[tuple[Any, int, int, Any, Any]] = []
        self.solved: dict[Any, Expr] = {}
        self.guards: list[Expr] = []
        self.masks: list[Expr] = []
        self.pinned: dict[Any, Expr] = {}
        self.target = list(target)
        for v, n in domain:
            self.add_unknown(v, n)
        for j, n in zip(target, shape, strict=False):
            bind(self.ana, j, n)
        self.equations = [(self.tidy(e), j) for e, j in zip(indices, target, strict=True)]
        # The analyzer replaces a variable of extent 1 by 0, so it would be found in no equation.
        for v in [v for v, n in domain if const_int(n) == 1]:
            self.assign(v, tirx.const(0, "int32"))

    # ---- the unknowns

    def add_unknown(self, variable: Any, extent: Expr) -> None:
        self.extents[variable] = extent
        bind(self.ana, variable, extent)

    def assign(self, variable: Any, value: Expr) -> None:
        """`variable` is `value`: replace it everywhere."""
        change = {variable: value}
        self.solved = {v: substitute(e, change) for v, e in self.solved.items()} | {variable: value}
        self.equations = [(self.tidy(substitute(a, change)), substitute(b, change)) for a, b in self.equations]
        self.guards = [substitute(g, change) for g in self.guards]
        self.masks = [substitute(g, change) for g in self.masks]
        del self.extents[variable]

    def length(self, variable: Any) -> int:
        return const_int(self.extents[variable]) or UNBOUNDED

    def points(self, unknowns: Any) -> int:
        return math.prod(self.length(v) for v in unknowns)

    def tidy(self, expr: Expr) -> Expr:
        """Simplify; TVM turns (0 - v) // 2 into v // -2, which is turned back."""

        def positive(d: Any) -> Any:
            return tirx.floordiv(0 - d.a, -const_int(d.b)) if (const_int(d.b) or 1) < 0 else d

        return rewrite(self.ana.simplify(expr), prim.FloorDiv, positive)

    # ---- divisions

    def split(self, several: bool = True) -> None:
        """Remove // and %, the smallest divisor first; of several variables only if `several`."""
        while (best := self.smallest_division(several)) is not None:
            coefficients, width, offset, numerator = best
            if len(self.splits) + len(self.extents) > MAX_UNKNOWNS:
                raise Unsolvable("its divisions do not resolve; write it in block coordinates, X[c, t] for X[c*C + t]")
            if list(coefficients.values()) == [1]:
                self.split_variable(next(iter(coefficients)), width, offset)
            else:
                self.name_quotient(numerator, width)

    def smallest_division(self, several: bool) -> tuple[dict[Any, int], int, int, Expr] | None:
        best = None
        for lhs, _ in self.equations:
            for division in find(lhs, lambda e: _is_division(e) and (const_int(e.b) or 0) > 0):
                coefficients, rest = linear(division.a, self.extents)
                offset = const_int(self.ana.simplify(rest))
                single = list(coefficients.values()) == [1]
                smaller = best is None or const_int(division.b) < best[1]
                if coefficients and offset is not None and (single or several) and smaller:
                    best = (coefficients, const_int(division.b), offset, division.a)
        return best

    def split_variable(self, variable: Any, width: int, offset: int) -> None:
        """variable = width*q + t - offset with 0 <= t < width."""
        offset, extent = offset % width, self.extents[variable]
        q, t = tirx.Var(variable.name + "_q", "int32"), tirx.Var(variable.name + "_t", "int32")
        exact = offset == 0 and self.ana.can_prove(tirx.floormod(extent, width) == 0)
        self.add_unknown(q, self.ana.simplify(tirx.floordiv(extent + (offset + width - 1), width)))
        self.add_unknown(t, tirx.const(width, "int32"))
        value = q * width + t - offset
        self.splits.append((variable, width, offset, q, t))
        self.assign(variable, value)
        if not exact:
            self.guards += [value >= 0, value < extent]

    def name_quotient(self, numerator: Expr, width: int) -> None:
        """numerator = width*q + r with unknowns q and r of their own."""
        bound = self.ana.const_int_bound(numerator)
        low, high = bound.min_value, bound.max_value
        if max(abs(low), abs(high)) >= 1 << 29:
            raise Unsolvable(f"({numerator}) // {width} runs over a symbolic range; write it in block coordinates")
        q, r = tirx.Var("q", "int32"), tirx.Var("r", "int32")
        self.add_unknown(q, tirx.const(high // width - low // width + 1, "int32"))
        self.add_unknown(r, tirx.const(width, "int32"))

        def swap(e: Any) -> Any:
            if const_int(e.b) == width and tvm_ffi.structural_equal(e.a, numerator, map_free_vars=False):
                return q + low // width if isinstance(e, prim.FloorDiv) else r
            return e

        both = ((prim.FloorDiv, swap), (prim.FloorMod, swap))
        self.equations = [(self.tidy(tvm_ffi.structural_map(a, both)), b) for a, b in self.equations]
        self.equations.append((self.tidy(numerator - width * q - r), tirx.const(width * (low // width), "int32")))

    # ---- linear steps

    def steps(self) -> Iterator[_Step]:
        for k, (lhs, _) in enumerate(self.equations):
            coefficients, rest = linear(lhs, self.extents)
            hidden = set(variables(rest)) & set(self.extents)
            coefficients = {v: c for v, c in coefficients.items() if v not in hidden}
            everything = self.points(coefficients) * self.points(hidden)
            for v, c in coefficients.items():
                order = (int(len(coefficients) > 1), abs(c))
                yield _Step(everything // self.length(v), order, lambda k=k, v=v: self.solve_for(k, v))
            if not hidden:
                for c in sorted({abs(x) for x in coefficients.values() if abs(x) > 1}):
                    yield from self.divisions(k, coefficients, c)

    def divisions(self, k: int, coefficients: dict[Any, int], c: int) -> Iterator[_Step]:
        """Steps that use the divisor `c` on equation `k`."""
        group = [v for v, x in coefficients.items() if x % c == 0]
        others = sorted((v for v in coefficients if v not in group), key=self.length)
        outside = list(others)
        moved: list[Any] = []
        while others and not self.fits(coefficients, others, c):
            moved.append(others.pop(0))
        if others or not moved or len(coefficients) == len(group):
            cost = self.points(group) // max(map(self.length, group)) * self.points(moved)
            yield _Step(cost, (0, 0), lambda: self.divide(k, c, group, others, moved))
        for v in outside:  # s*i + r with r >= s: write r = s*q + t
            n = const_int(self.extents[v])
            if abs(coefficients[v]) == 1 and n is not None and n > c:
                parts = [self.length(u) for u in group] + [-(-n // c)]
                rest = self.points(u for u in outside if not u.same_as(v))
                cost = math.prod(parts) // max(parts) * rest
                yield _Step(cost, (2, 0), lambda v=v: self.split_variable(v, c, 0))

    def fits(self, coefficients: dict[Any, int], others: list[Any], c: int) -> bool:
        return sum(abs(coefficients[v]) * (self.length(v) - 1) for v in others) < c

    def divide(self, k: int, c: int, group: list[Any], others: list[Any], moved: list[Any]) -> None:
        """``c*G + R = j`` with 0 <= R - low < c is ``G = (j - low) // c`` and ``R - low = (j - low) % c``.

        Variables in `moved` go to the right-hand side: they stay free.
        """
        lhs, j = self.equations[k]
        coefficients, rest = linear(lhs, self.extents)

        def term(unknowns: list[Any], by: int = 1) -> Expr:
            return total([v * (coefficients[v] // by) for v in unknowns] or [tirx.const(0, "int32")])

        low = sum(min(0, coefficients[v] * (self.length(v) - 1)) for v in others)
        j = self.ana.simplify(j - rest - term(moved) - low)
        self.equations[k : k + 1] = [
            (term(group, c), self.ana.simplify(tirx.floordiv(j, c))),
            (self.ana.simplify(term(others) - low), self.ana.simplify(tirx.floormod(j, c))),
        ]

    def solve_for(self, k: int, variable: Any) -> None:
        """Equation `k` gives `variable`, with a divisibility guard unless its coefficient is one."""
        lhs, j = self.equations.pop(k)
        coefficients, rest = linear(lhs, self.extents)
        c, extent = coefficients[variable], self.extents[variable]
        others = total([u * x for u, x in coefficients.items() if not u.same_as(variable)] + [rest])
        value = (j - others) if c > 0 else (others - j)
        if abs(c) > 1:
            self.guards.append(tirx.floormod(value, abs(c)) == 0)
            value = tirx.floordiv(value, abs(c))
        value = self.ana.simplify(value)
        self.assign(variable, value)
        self.guards += [value >= 0, value < extent]

    def solve(self) -> Inverse:
        self.split()
        for _ in range(MAX_STEPS):
            steps = sorted(self.steps(), key=lambda s: (s.cost, s.order)) if self.equations else []
            if not steps:
                break
            steps[0].run()
        else:
            raise Unsolvable("the index map is too intricate; write it in block coordinates")
        for lhs, j in self.equations:
            if not self.pin(lhs, j):
                self.guards.append(tirx.EQ(lhs, j))
                if set(variables(lhs)) & set(self.extents):
                    self.masks.append(tirx.EQ(lhs, j))
        return Inverse(self.solved, list(self.extents.items()), self.guards, self.ana, self.masks, self.pinned)

    def pin(self, lhs: Expr, j: Any) -> bool:
        """Note an equation that says where one target variable must be; False for any other equation."""
        used = set(variables(lhs))
        if not isinstance(j, ir.Var) or not any(j.same_as(t) for t in self.target) or self.ana.can_prove(tirx.EQ(lhs, j)):
            return False
        if used & set(self.extents) or used & {j, *self.pinned} or any(j in set(variables(e)) for e in self.pinned.values()):
            return False
        if j in self.pinned:
            return False
        self.pinned[j] = lhs
        return True
