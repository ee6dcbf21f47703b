"""Masks that leave a band: which columns of a tile the rows of one warp can see at all.

A tile of scores whose mask says ``low <= column - row <= high`` is constant outside that band, whatever is computed there.
A warp that owns some of its rows then holds only the columns from its first row's `low` to its last row's `high`: fewer
products, fewer registers, and where the mask is known to hold nothing of it is left.  Nothing here knows what the mask is for; it is
read off the choices in the stages, and a tile is only narrowed if all that leaves it is constant outside the band: terms of sums and
maxima, operands of contractions, what goes to shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx
from tvm import ir, sym, te, tirx

from tilegen.expression.walkers import (
    call_name,
    children,
    const_int,
    find,
    is_load,
    load_indices,
    load_tensor,
    prim,
    substitute,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.gpu.holding import Node
from tilegen.plan.gpu.layout import PAD, padded

COMPARISONS = (prim.LT, prim.LE, prim.GT, prim.GE)
FRAGMENTS = ("contract", "fragment")


@dataclass(frozen=True)
class Band:
    """``low <= column - row <= high``, and the constants that stages are elsewhere (of a row statistic: that its terms are)."""

    low: int
    high: int
    outside: dict[te.Tensor, float]


def narrow(program: Any) -> dict[te.Tensor, float]:
    """Give every family of banded tiles a layout of the band alone; what its stages are outside."""
    found: dict[te.Tensor, float] = {}
    for family in _families(program):
        layout = family[0].layout
        plain = all(
            n.layout == layout and n.cut is None and n.role in ("map", "reduce") and n not in program.precise for n in family
        )
        if not plain or not layout.tensor or layout.turned or layout.across > 1:
            continue
        band = Bands(program, family).find()
        if band is None:
            continue
        rows = layout.dims[0] * PAD
        first = band.low // PAD * PAD
        width = padded(rows + band.high - first)
        if first < 0 or layout.columns <= width or (layout.down - 1) * rows + first + width > padded(layout.columns):
            continue
        for node in family:
            node.layout = replace(layout, slant=(first, width))
        found |= band.outside
    return found


def _families(program: Any) -> Iterator[list[Node]]:
    """Tiles in registers that read each other element by element, with the sums and maxima over their rows."""
    known = networkx.utils.UnionFind()
    for node in program.steps:
        if node.way in ("fragment", "rowstat"):
            for read in node.reads:
                source = program.nodes[read.source]
                # A product that a state accumulates is no step of its own.
                if source.way in FRAGMENTS and source.role != "fused" and _is_point(read.at, node):
                    known.union(node.position, source.position)
    for positions in known.to_sets():
        yield [program.steps[k] for k in sorted(positions)]


def _point(node: Node) -> tuple[Any, ...]:
    return (*node.own, *node.over) if node.way == "rowstat" else tuple(node.own)


def _is_point(at: Sequence[Any], node: Node) -> bool:
    mine = _point(node)
    return len(at) == len(mine) and all(a.same_as(b) for a, b in zip(at, mine, strict=True))


class Bands:
    """The band of one family."""

    def __init__(self, program: Any, family: list[Node]):
        self.program, self.family = program, family
        self.row, self.shift = tirx.Var("row", "int32"), tirx.Var("shift", "int32")
        self.terms = {node.tensor: self._term(node) for node in family if node.way != "contract"}
        self.members = {node.tensor for node in family if node.way in FRAGMENTS}

    def find(self) -> Band | None:
        """The narrowest band outside which everything that leaves the family is the same constant on both sides."""
        lows, highs = self._thresholds()
        size = max(n for node in self.family for n in (*node.extents, node.layout.columns if node.layout else 0))
        sides = []
        for starts, region in ((sorted(lows, reverse=True), lambda at: (-size, at)), (sorted(highs), lambda at: (at + 1, size))):
            for at in starts:
                constants = self._leaving(*region(at))
                if constants is not None:
                    sides.append((at, constants))
                    break
            else:
                return None
        (low, below), (high, above) = sides
        return Band(low, high, below) if below == above and low <= high else None

    # ---------------------------------------------------------------- stages as expressions of (row, row + shift)

    def _term(self, node: Node) -> Any:
        """The value of a stage, or the terms of a sum or maximum, at (row, row + shift)."""
        axes = [*stages.axes(node.tensor), *([a.var for a in stages.reduce_axes(node.tensor)] if node.way == "rowstat" else [])]
        return substitute(
            stages.body(node.tensor), dict(zip(axes, [*self.program.outer, self.row, self.row + self.shift], strict=True))
        )

    def _inlined(self, load: Any) -> Any:
        """The expression of a stage that is computed where it is read, or None."""
        tensor, at = load_tensor(load), load_indices(load)
        if stages.kind(tensor) != "map" or tensor in self.program.memory or tensor in self.program.nodes:
            return None
        return substitute(stages.body(tensor), dict(zip(stages.axes(tensor), at, strict=True)))

    def _member(self, load: Any) -> te.Tensor | None:
        """The stage of the family that a read reads at this very point, or None."""
        at = load_indices(load)[self.program.rank :]
        if load_tensor(load) not in self.members or len(at) != 2:
            return None
        here = stages.equal(at[0], self.row) and stages.equal(at[1], self.row + self.shift)
        return load_tensor(load) if here else None

    # ---------------------------------------------------------------- where choices change

    def _thresholds(self) -> tuple[set[int], set[int]]:
        """The least and the greatest shifts that comparisons of column and row ask for."""
        lows: set[int] = set()
        highs: set[int] = set()
        seen: set[te.Tensor] = set()
        stack = list(self.terms.values())
        while stack:
            expr = stack.pop()
            for load in find(expr, is_load):
                if load_tensor(load) not in seen and (inlined := self._inlined(load)) is not None:
                    seen.add(load_tensor(load))
                    stack.append(inlined)
            for comparison in find(expr, lambda e: isinstance(e, COMPARISONS)):
                self._threshold(comparison, lows, highs)
        return lows, highs

    def _threshold(self, comparison: Any, lows: set[int], highs: set[int]) -> None:
        smaller, larger = comparison.a, comparison.b
        if isinstance(comparison, (prim.GT, prim.GE)):
            smaller, larger = larger, smaller
        gap = self._simplified(
            larger - smaller - (1 if isinstance(comparison, (prim.LT, prim.GT)) else 0)
        )  # true where it is not negative
        if not variables(gap) or not all(v.same_as(self.shift) for v in variables(gap)):
            return
        at = [const_int(self._simplified(substitute(gap, {self.shift: tirx.const(k, "int32")}))) for k in range(2)]
        if at[0] is not None and at[1] == at[0] + 1:
            lows.add(-at[0])
        elif at[0] is not None and at[1] == at[0] - 1:
            highs.add(at[0])

    @staticmethod
    def _simplified(expr: Any) -> Any:
        return sym.Analyzer().simplify(expr)

    # ---------------------------------------------------------------- values outside

    def _leaving(self, first: int, end: int) -> dict[te.Tensor, float] | None:
        """What leaves the family where ``first <= shift < end``, constants all of it; None if something is not."""
        if first >= end:
            return None
        outside = Outside(self, first, end)
        found: dict[te.Tensor, float] = {}
        for node in self.family:
            if node.way == "rowstat" or self._leaves(node):
                value = outside.of(node.tensor)
                if value is None or (node.way == "rowstat" and stages.reduction(node.tensor) == "sum" and value != 0):
                    return None
                found[node.tensor] = value
        for tensor in self._operands():
            if found.get(tensor) != 0:
                return None
        return found

    def _operands(self) -> list[te.Tensor]:
        return [o.source for node in self.program.steps for o in node.operands or () if o.source in self.members]

    def _leaves(self, node: Node) -> bool:
        """Whether anything outside the family reads a stage of it."""
        others = (n for n in self.program.steps if any(self.program.nodes[r.source] is node for r in n.reads))
        inside = lambda n: n in self.family and all(_is_point(r.at, n) for r in n.reads if self.program.nodes[r.source] is node)  # noqa: E731
        return node.tensor in self._operands() or not all(inside(n) for n in others)


class Outside:
    """Values where ``first <= shift < end``: a constant, or None where it is not known to be one."""

    def __init__(self, bands: Bands, first: int, end: int):
        self.bands = bands
        self.analyzer = sym.Analyzer()
        self.analyzer.bind(bands.shift, ir.Range(first, end))
        self.known: dict[te.Tensor, float | None] = {}

    def of(self, tensor: te.Tensor) -> float | None:
        """The constant that a stage of the family is."""
        if tensor not in self.known:
            self.known[tensor] = self._value(self.bands.terms[tensor]) if tensor in self.bands.terms else None
        return self.known[tensor]

    def _value(self, expr: Any) -> float | None:
        if isinstance(expr, (prim.FloatImm, prim.IntImm)):
            return float(expr.value)
        if is_load(expr):
            member = self.bands._member(expr)
            if member is not None:
                return self.of(member)
            inlined = self.bands._inlined(expr)
            return None if inlined is None else self._value(inlined)
        if isinstance(expr, prim.Cast):
            return self._value(expr.value)
        if call_name(expr) == "if_then_else":
            holds = self._holds(expr.args[0])
            sides = [self._value(e) for e in (expr.args[1:] if holds is None else [expr.args[1 if holds else 2]])]
            return sides[0] if all(side == sides[0] for side in sides) else None
        if isinstance(expr, prim.Mul):
            # What is masked to 0 stays 0: its other factor is finite wherever the result is.
            sides = [self._value(e) for e in (expr.a, expr.b)]
            return 0.0 if 0.0 in sides else None if None in sides else sides[0] * sides[1]  # type: ignore[operator]
        return None

    def _holds(self, condition: Any) -> bool | None:
        """Whether a condition is true everywhere, or false everywhere."""
        if isinstance(condition, (prim.And, prim.Or)):
            decisive = isinstance(condition, prim.Or)
            sides = [self._holds(e) for e in children(condition)]
            return decisive if decisive in sides else None if None in sides else not decisive
        if isinstance(condition, prim.Not):
            side = self._holds(condition.a)
            return None if side is None else not side
        if is_load(condition) or find(condition, is_load):
            return None
        if self.analyzer.can_prove(condition):
            return True
        return False if self.analyzer.can_prove(tirx.Not(condition)) else None
