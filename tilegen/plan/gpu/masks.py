"""What a mask says of many elements of a tile at once, so that it is asked once and not for every element.

The blocks of columns that a thread holds are cut into *segments* in which every comparison of row and column either holds for all
elements, or for none, or stays open.  What an open comparison also depends on (the length of the sequence, the number of the tile) is the
same for the whole block: where it holds even for the worst element of the segment, it need not be asked for any other.  So a segment has a
fast version under one condition for the block, and one that asks element by element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import sym, tirx

from tilegen.expression.walkers import const_int, find, is_load, prim, substitute, variables
from tilegen.plan.gpu.layout import PAD, Layout

COMPARISONS = (prim.LT, prim.LE, prim.GT, prim.GE)


@dataclass(frozen=True)
class Gap:
    """A comparison as ``row_factor row + column_factor column + rest >= 0``."""

    row_factor: int
    column_factor: int
    rest: Any


def gap(comparison: Any, row: Any, column: Any) -> Gap | None:
    """A comparison in that form, or None."""
    if not isinstance(comparison, COMPARISONS) or find(comparison, is_load):
        return None
    difference = _difference(comparison)
    analyzer = sym.Analyzer()
    number = lambda k: tirx.const(k, "int32")  # noqa: E731
    rest = analyzer.simplify(substitute(difference, {row: number(0), column: number(0)}))
    factors = []
    for mine, other in ((row, column), (column, row)):
        at = [substitute(difference, {mine: number(k), other: number(0)}) for k in (1, 7)]
        first, sixth = (const_int(analyzer.simplify(value - rest)) for value in at)
        if first is None or sixth != 7 * first:
            return None
        factors.append(first)
    linear = analyzer.simplify(difference - row * factors[0] - column * factors[1] - rest)
    return Gap(factors[0], factors[1], rest) if const_int(linear) == 0 else None


@dataclass
class Domain:
    """Elements of a layout in the blocks of columns from `first` to `end`, at `row` and `column`.

    Parameters
    ----------
    assumed : comparisons that hold for all of them, as the block found out.
    context : conditions that hold for what is being computed.
    """

    layout: Layout
    row: Any
    column: Any
    first: int
    end: int
    assumed: list[Any] = field(default_factory=list)
    context: list[Any] = field(default_factory=list)

    def range(self, wanted: Gap) -> tuple[int, int]:
        """The least and the greatest value of a gap without its rest."""
        layout, r, c = self.layout, wanted.row_factor, wanted.column_factor
        blocks, slant = layout.dims[0], layout.slant
        # (factor, count): rows and columns are sums of these multiples of 0 .. count - 1.
        parts = [((r + (c if slant else 0)) * blocks * PAD, layout.down), (r * PAD, blocks), (r * 8, 2), (r, 8), (c, 8)]
        parts += [(c * 8, self.end - self.first), (c * 8 * layout.dims[1], layout.across)]
        low = high = c * (self.first * 8 + (slant[0] if slant else 0))
        for factor, count in parts:
            low, high = low + min(0, factor * (count - 1)), high + max(0, factor * (count - 1))
        return low, high

    def worst(self, comparison: Any) -> Any:
        """The comparison for the element of the domain that meets it last; None if the block does not know, or nothing depends on it."""
        wanted = gap(comparison, self.row, self.column)
        if (
            wanted is None
            or const_int(wanted.rest) is not None
            or any(v.same_as(self.row) or v.same_as(self.column) for v in variables(wanted.rest))
        ):
            return None
        return wanted.rest + self.range(wanted)[0] >= 0

    def decided(self, condition: Any, context: bool = False) -> Any:
        """True, False, or what is left of a condition; `context` says whether the context counts."""
        if known(condition, self.assumed) or (context and known(condition, self.context)):
            return True
        if isinstance(condition, (prim.And, prim.Or)):
            decisive = isinstance(condition, prim.Or)
            sides = [self.decided(e, context) for e in (condition.a, condition.b)]
            if decisive in sides:
                return decisive
            left = [s for s in sides if s is not (not decisive)]
            return (not decisive) if not left else left[0] if len(left) == 1 else type(condition)(*left)
        if isinstance(condition, prim.Not):
            side = self.decided(condition.a, context)
            return (not side) if isinstance(side, bool) else tirx.Not(side)
        wanted = gap(condition, self.row, self.column)
        rest = None if wanted is None else const_int(wanted.rest)
        if wanted is None or rest is None:
            return condition
        low, high = self.range(wanted)
        return True if low + rest >= 0 else False if high + rest < 0 else condition

    def assumptions(self, conditions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Comparisons worth assuming to hold for the whole domain, and what the block must find to be true for that.

        They are if nothing is left to ask of any element then, or if they would have been asked for every element.
        """
        left = [d for c in conditions if not isinstance(d := self.decided(c), bool)]
        found = [(c, worst) for c in comparisons(left) if (worst := self.worst(c)) is not None]
        if not found:
            return [], []
        after = Domain(self.layout, self.row, self.column, self.first, self.end, [c for c, _ in found])
        if not all(isinstance(after.decided(c), bool) for c in left):
            mine = lambda c: any(v.same_as(self.row) or v.same_as(self.column) for v in variables(c))  # noqa: E731
            found = [(c, worst) for c, worst in found if mine(c)]
        worst = []
        for _, condition in found:
            if not known(condition, worst):
                worst.append(condition)
        return [c for c, _ in found], worst

    @contextmanager
    def within(self, condition: Any) -> Iterator[None]:
        """What is computed where `condition` holds."""
        before = self.context
        self.context = [*before, *parts(condition)]
        yield
        self.context = before


def known(condition: Any, among: Sequence[Any]) -> bool:
    """Whether a condition is one of several."""
    return any(tvm_ffi.structural_equal(condition, other) for other in among)


def parts(condition: Any) -> list[Any]:
    """The conditions that one is a conjunction of."""
    if isinstance(condition, prim.And):
        return [*parts(condition.a), *parts(condition.b)]
    return [condition]


def worst(condition: Any, row: Any, rows: range) -> Any:
    """A condition on `row` for that of some rows which meets it last; None if that is another one from block to block."""
    if not any(v.same_as(row) for v in variables(condition)):
        return condition
    if not isinstance(condition, COMPARISONS):
        return None
    analyzer = sym.Analyzer()
    at = lambda k: substitute(_difference(condition), {row: tirx.const(k, "int32")})  # noqa: E731
    gaps: list[int] = []
    for k in rows:
        value = const_int(analyzer.simplify(at(k) - at(rows[0])))
        if value is None:
            return None
        gaps.append(value)
    return analyzer.simplify(at(rows[0])) + min(gaps) >= 0


def _difference(comparison: Any) -> Any:
    """What is not negative where a comparison holds."""
    smaller, larger = comparison.a, comparison.b
    if isinstance(comparison, (prim.GT, prim.GE)):
        smaller, larger = larger, smaller
    return larger - smaller - (1 if isinstance(comparison, (prim.LT, prim.GT)) else 0)


def comparisons(conditions: Sequence[Any]) -> list[Any]:
    """The comparisons in some conditions, each once."""
    found: list[Any] = []
    for condition in conditions:
        for comparison in find(condition, lambda e: isinstance(e, COMPARISONS)):
            if not any(tvm_ffi.structural_equal(comparison, other) for other in found):
                found.append(comparison)
    return found


def segments(layout: Layout, open_: Sequence[Any], row: Any, column: Any) -> list[tuple[int, int]]:
    """The blocks of columns, cut where what is known of the comparisons `open_` changes."""
    gaps = [g for c in open_ if (g := gap(c, row, column)) is not None and const_int(g.rest) is not None]
    found: list[tuple[int, int]] = []
    before: Any = None
    for block in range(layout.dims[1]):
        here = Domain(layout, row, column, block, block + 1)
        ranges = [(low + const_int(g.rest), high + const_int(g.rest)) for g in gaps for low, high in [here.range(g)]]
        signs = [1 if low >= 0 else -1 if high < 0 else 0 for low, high in ranges]
        if signs == before:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
        before = signs
    return found
