"""Finding sums that tiles share out among each other: parts of one contraction, read at several tiles evenly apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.ranges import analyzer, prune
from tilegen.autodiff.simplify import split_guard
from tilegen.expression.printer import text
from tilegen.expression.walkers import conjunction, const_int, factors, is_load, load_indices, load_tensor, prim
from tilegen.plan import stages
from tilegen.plan.frames import is_local, outer, outer_rank


@dataclass(frozen=True)
class Part:
    """A term of a sum over tiles: `source` at outer point `at` moved by `shift` along outer axis `axis`, its row `first` + `row`."""

    source: te.Tensor
    at: tuple[Any, ...]
    axis: int
    shift: int
    inner: int
    first: int
    row: Any


@dataclass
class Shared:
    """A stage whose value is `rest` plus parts of one contraction, and what is known of these."""

    stage: te.Tensor
    rest: list[Any]
    parts: list[Part]
    extent: int

    @property
    def step(self) -> int:
        """By how much the first row moves from part to part."""
        return self.parts[1].first - self.parts[0].first

    def signature(self) -> tuple[Any, ...]:
        """What stages must agree in to be gathered by one task."""
        source, part = self.parts[0].source, self.parts[0]
        shape = tuple(text(n) for n in outer(source))
        return (shape, part.axis, part.shift, len(self.parts), part.first, self.step, self.extent, depth_of(source))


def shared_sum(tensor: te.Tensor) -> Shared | None:
    """`tensor` as a sum over parts of one contraction at several outer points, evenly apart; None if it is none."""
    ana = analyzer(zip(stages.axes(tensor), tensor.shape, strict=True))
    rest: list[Any] = []
    found: dict[te.Tensor, list[tuple[list[Any], list[Any]]]] = {}
    for conditions, value in _terms(stages.body(tensor)):
        if is_load(value) and _is_contraction(load_tensor(value)):
            found.setdefault(load_tensor(value), []).append((conditions, load_indices(value)))
        else:
            rest.append(value if not conditions else guarded_by(conditions, value))
    if len(found) != 1:
        return None
    ((source, reads),) = found.items()
    parts = [_part(source, reads[0][1], at, ana) for _, at in reads]
    if len(parts) < 2 or None in parts:
        return None
    return _even(tensor, rest, [p for p in parts if p is not None], [c for c, _ in reads], ana)


def _terms(expr: Any) -> list[tuple[list[Any], Any]]:
    """The terms of a sum, each with the conditions under which it is added."""
    conditions, value = split_guard(expr)
    if not isinstance(value, prim.Add):
        return [(conditions, value)]
    return [(conditions + inner, term) for side in (value.a, value.b) for inner, term in _terms(side)]


def guarded_by(conditions: Sequence[Any], value: Any) -> Any:
    """`value` where all conditions hold, else zero."""
    return tirx.if_then_else(conjunction(conditions), value, tirx.const(0, str(value.ty.dtype)))


def _is_contraction(tensor: te.Tensor) -> bool:
    """Whether a stage is a matrix product of two stages of its tile."""
    if stages.kind(tensor) != "reduce" or not is_local(tensor) or stages.reduction(tensor) != "sum":
        return False
    operands = factors(stages.body(tensor))
    return (
        len(tensor.shape) == outer_rank(tensor) + 2
        and len(stages.reduce_axes(tensor)) == 1
        and len(operands) == 2
        and all(map(is_load, operands))
    )


def _part(source: te.Tensor, first: list[Any], at: list[Any], ana: Any) -> Part | None:
    """The read of `source` at `at`, relative to the read at `first`."""
    rank = outer_rank(source)
    apart = [(k, const_int(ana.simplify(i - j))) for k, (i, j) in enumerate(zip(at, first, strict=True))]
    if any(distance is None for _, distance in apart):
        return None
    moved = {k: distance for k, distance in apart if distance}
    outside, inside = [k for k in moved if k < rank], [k for k in moved if k >= rank]
    if not moved:
        return Part(source, tuple(at), -1, 0, -1, 0, None)
    if len(outside) != 1 or len(inside) > 1:
        return None
    inner = inside[0] if inside else -1
    return Part(source, tuple(at), outside[0], moved[outside[0]], inner, moved.get(inner, 0), None)


def _even(tensor: te.Tensor, rest: list[Any], parts: list[Part], conditions: list[list[Any]], ana: Any) -> Shared | None:
    """The parts in order, with absolute shifts and rows, if they are evenly apart and each is added where its tile exists."""
    axes, inners = {p.axis for p in parts} - {-1}, {p.inner for p in parts} - {-1}
    if len(axes) != 1 or len(inners) != 1:
        return None
    (axis,), (inner,) = axes, inners
    source = parts[0].source
    found: list[Part] = []
    own = next((p for p, c in zip(parts, conditions, strict=True) if not c), None)
    if own is None:
        return None
    for part, where in zip(parts, conditions, strict=True):
        shift = const_int(ana.simplify(part.at[axis] - own.at[axis]))
        row, first = _split(ana.simplify(part.at[inner]))
        index = part.at[axis]
        exists = prune([index >= 0, index < source.shape[axis]], ana)
        if not all(any(_implies(c, e, ana) for e in exists) for c in where):
            return None
        found.append(Part(source, own.at, axis, int(shift), inner, first, row))
    found.sort(key=lambda p: p.shift)
    even = all(
        b.shift == a.shift + 1 and b.first - a.first == found[1].first - found[0].first
        for a, b in itertools.pairwise(found)
    )
    bound = ana.const_int_bound(found[0].row)
    if not even or int(bound.min_value) != 0 or any(not stages.equal(p.row, found[0].row) for p in found):
        return None
    return Shared(tensor, rest, found, int(bound.max_value) + 1)


def _implies(wanted: Any, known: Any, ana: Any) -> bool:
    """Whether a condition of a part says no more than that its tile exists."""
    proved = bool(ana.can_prove(tirx.Or(tirx.Not(known), wanted)))
    return proved or text(ana.simplify(wanted)) == text(ana.simplify(known))


def _split(index: Any) -> tuple[Any, int]:
    """An index as something and a constant."""
    if isinstance(index, prim.Add) and const_int(index.b) is not None:
        return index.a, int(const_int(index.b))
    return index, 0


def depth_of(contraction: te.Tensor) -> int:
    """The rows of a query tile, over which a part is summed."""
    (axis,) = stages.reduce_axes(contraction)
    return int(const_int(axis.dom.extent))
