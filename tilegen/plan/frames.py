"""Frames: which stages can be computed together, tile by tile.

A *tiled* stage has leading axes up to its last symbolic one (its *outer* axes: batch, head, tile number) and static axes
behind them (its *inner* axes: positions in a tile).  All tiled stages with the same outer axes that read each other at the
same outer point can live in one kernel: a task owns an outer point, inner values stay in local memory.  A scan along an
outer axis makes the task walk that axis with the state in local memory.

A result need not be tiled itself: an axis t of it may be read as (t // C, t % C), and an outer axis may be read at one
fixed place (the last tile).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tvm import ir, sym, te, tirx

from tilegen.expression.ragged import Placement, is_table, placement
from tilegen.expression.scan import scan_spec
from tilegen.expression.walkers import (
    const_int,
    dtype_of,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    same_tensor,
    size_estimate,
    substitute,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.access import anchors_below, stage_reads

LAST = "tilegen.last"
"""The attribute of a stage that is the last of a scan: to the steps of a walk it is there once that walk is over."""

REPEATED, MANY = 4, 8
"""A stage that this many elements of a result share, and that is made from this many others, is written to memory first."""

EVERYWHERE = "tilegen.everywhere"
"""The attribute of a stage that has elements which no tile stands for: the states of sequences without positions."""


@lru_cache(maxsize=1 << 14)
def outer_rank(tensor: te.Tensor) -> int:
    """The number of leading axes up to the last symbolic one."""
    symbolic = [k for k, extent in enumerate(tensor.shape) if const_int(extent) is None]
    return symbolic[-1] + 1 if symbolic else 0


def outer(tensor: te.Tensor) -> list[Any]:
    """The outer extents."""
    return list(tensor.shape)[: outer_rank(tensor)]


def inner(tensor: te.Tensor) -> list[Any]:
    """The inner extents, all static."""
    return list(tensor.shape)[outer_rank(tensor) :]


def walk_axis(tensor: te.Tensor) -> int | None:
    """The outer axis that a scan runs along, or None for other stages and for scans inside a tile."""
    spec = scan_spec(tensor.op)
    return spec.axis if spec is not None and spec.axis < outer_rank(tensor) else None


def is_everywhere(tensor: te.Tensor) -> bool:
    """Whether a stage has elements that no tile stands for, so that it is computed from results in memory."""
    return bool(tensor.op.attrs) and EVERYWHERE in tensor.op.attrs


def is_last(tensor: te.Tensor) -> bool:
    """Whether a stage is the last of a scan that other walks read."""
    return bool(tensor.op.attrs) and LAST in tensor.op.attrs


def is_local(tensor: te.Tensor) -> bool:
    """Whether a stage is one that a task computes for a tile: a reduction over static axes, or a scan inside a tile."""
    kind = stages.kind(tensor)
    if kind == "reduce":
        return outer_rank(tensor) > 0 and all(const_int(axis.dom.extent) is not None for axis in stages.reduce_axes(tensor))
    return kind == "scan" and outer_rank(tensor) > 0 and walk_axis(tensor) is None


@dataclass
class Frame:
    """How a result lies in the outer axes of a kernel.

    Parameters
    ----------
    extents : the outer extents of the kernel.
    axes : for every axis of the result, (outer axis, tile size) it is split over (size 1: it is that axis), or None.
    fixed : outer axes at which only one place contributes, with that place.
    ragged : axes of the result whose elements lie in tiles by tables on the device (packed sequences).
    """

    extents: list[Any]
    axes: list[tuple[int, int] | None]
    fixed: dict[int, Any] = field(default_factory=dict)
    ragged: dict[int, Placement] = field(default_factory=dict)

    def inner_extents(self, tensor: te.Tensor) -> list[Any]:
        """The extents of the loops inside a tile that write the result."""
        found = []
        for extent, place in zip(tensor.shape, self.axes, strict=True):
            if place is None:
                found.append(extent)
            elif place[1] > 1:
                found.append(place[1])
        return found

    def indices(self, at: list[Any], inside: list[Any], first: Mapping[int, Any] | None = None) -> list[Any]:
        """The element of the result at outer point `at` and inner point `inside`.

        `first` gives for ragged axes the first element of the tile there, which tables tell (`firsts`).
        """
        rest = iter(inside)
        found = []
        for k, place in enumerate(self.axes):
            if place is None:
                found.append(next(rest))
            elif k in self.ragged:
                start = self.firsts(at)[k] if first is None else first[k]
                found.append(start + next(rest) if place[1] > 1 else start)
            else:
                outer_axis, size = place
                found.append(at[outer_axis] if size == 1 else at[outer_axis] * size + next(rest))
        return found

    def firsts(self, at: list[Any]) -> dict[int, Any]:
        """For every ragged axis the first element of the tile at `at`, as a read of its table."""
        return {k: placed.first(at[self._outer_axis(k)]) for k, placed in self.ragged.items()}

    def counts(self, at: list[Any]) -> dict[int, Any]:
        """For every ragged axis how many elements the tile at `at` has, as a read of its table."""
        return {k: placed.count(at[self._outer_axis(k)]) for k, placed in self.ragged.items()}

    def _outer_axis(self, k: int) -> int:
        place = self.axes[k]
        assert place is not None, f"axis {k} of a result lies along no outer axis"
        return place[0]

    def guards(self, tensor: te.Tensor, at: list[Any], indices: list[Any]) -> list[Any]:
        """Conditions under which that element exists and is this task's to write; a ragged axis needs its count besides."""
        found = [at[k] == place for k, place in self.fixed.items()]
        for k, (extent, index, place) in enumerate(zip(tensor.shape, indices, self.axes, strict=True)):
            if k in self.ragged:
                found += [index >= 0, index < extent]
            elif place is not None and place[1] > 1:
                found.append(index < extent)
        return found

    def located(self, tensor: te.Tensor, index: Any, at: list[Any], inside: list[Any], elements: Mapping[int, Any]) -> Any:
        """What a placing stage says of one of `elements` along ragged axes, by the task's own variables; None for anything else."""
        placed = placement(tensor)
        if placed is None:
            return None
        rest = iter(inside)
        rows = [None if place is not None and place[1] == 1 else next(rest) for place in self.axes]
        for k, element in elements.items():
            # The first and the last tile of a sequence have one owner: only the count tells them apart.
            known = self.ragged[k]
            same = same_tensor(placed.first, known.first) and same_tensor(placed.count, known.count)
            if same and stages.equal(index, element):
                return at[self._outer_axis(k)] if placed.part == "tile" else rows[k]
        return None


def own_frame(tensor: te.Tensor) -> Frame:
    """The frame of a tiled stage: its own outer axes."""
    rank = outer_rank(tensor)
    return Frame(outer(tensor), [(k, 1) if k < rank else None for k in range(len(tensor.shape))])


def frame_of(tensor: te.Tensor, ready: Collection[te.Tensor]) -> Frame | None:
    """The frame in which a task can compute `tensor`; None when it needs none (it reads nothing but memory)."""
    if is_local(tensor) or walk_axis(tensor) is not None:
        return own_frame(tensor)
    if stages.kind(tensor) != "map" or is_everywhere(tensor):
        return None
    axes = stages.axes(tensor)
    stack: list[tuple[te.Tensor, list[Any]]] = [(tensor, list(axes))]
    seen: set[str] = set()
    narrow: Frame | None = None
    while stack:
        current, indices = stack.pop()
        if current in ready or f"{hash(current)} {indices}" in seen:
            continue
        seen.add(f"{hash(current)} {indices}")
        if current is not tensor and (is_local(current) or walk_axis(current) is not None):
            found = _fit(axes, outer(current), indices[: outer_rank(current)])
            # What reads one stage at its own place and another at a fixed one belongs to all places.
            if found is not None and not found.fixed:
                return found
            narrow = narrow or found
            continue
        if stages.kind(current) == "map":
            stack += reversed(stage_reads(current, indices))
    return narrow


def _fit(axes: list[Any], extents: list[Any], indices: list[Any]) -> Frame | None:
    """The frame in which a result over `axes` reads a stage at outer `indices`, if those are axes, quotients or fixed."""
    places: list[tuple[int, int] | None] = [None] * len(axes)
    fixed: dict[int, Any] = {}
    ragged: dict[int, Placement] = {}
    own = {axis: k for k, axis in enumerate(axes)}
    for position, index in enumerate(indices):
        size, var = 1, index
        placed = placement(load_tensor(index)) if is_load(index) else None
        if placed is not None and placed.part == "tile" and load_indices(index)[0] in own:
            size, var = placed.size, load_indices(index)[0]
            ragged[own[var]] = placed
        elif isinstance(index, prim.FloorDiv) and const_int(index.b) is not None:
            size, var = const_int(index.b), index.a
        if isinstance(var, tirx.Var) and var in own:
            if places[own[var]] is not None:
                return None
            places[own[var]] = (position, size)
        elif not any(v in own for v in variables(index)):
            fixed[position] = index
        else:
            return None
    return Frame(extents, places, fixed, ragged)


@dataclass
class Cone:
    """What a task computes for a result: local stages, walked scans, and tensors that must be in memory.

    Of these `plain` are sums of what lies in tiles of several sizes, which are best added up from memory.
    """

    locals: set[te.Tensor] = field(default_factory=set)
    walks: set[te.Tensor] = field(default_factory=set)
    memory: set[te.Tensor] = field(default_factory=set)
    plain: set[te.Tensor] = field(default_factory=set)


def cone(tensor: te.Tensor, frame: Frame, ready: Collection[te.Tensor]) -> Cone:
    """Everything that computing `tensor` in `frame` needs."""
    found = Cone()
    analyzer = sym.Analyzer()
    at = [tirx.Var(f"o{k}", "int32") for k in range(len(frame.extents))]
    for var, extent in zip(at, frame.extents, strict=True):
        _bind(analyzer, var, extent)
    inside = [tirx.Var(f"i{k}", "int32") for k in range(len(frame.inner_extents(tensor)))]
    for var, extent in zip(inside, frame.inner_extents(tensor), strict=True):
        _bind(analyzer, var, extent)
    elements = {k: tirx.Var(f"e{k}", "int32") for k in frame.ragged}
    place = {at[k]: value for k, value in frame.fixed.items()}
    begin = dict.fromkeys(at, tirx.const(0, "int32"))
    seen: set[str] = set()

    def simple(index: Any) -> Any:
        if not hasattr(index, "ty"):
            return index
        return analyzer.simplify(rewrite(index, ir.Call, located) if elements else index)

    def located(call: Any) -> Any:
        known = frame.located(load_tensor(call), load_indices(call)[0], at, inside, elements) if is_load(call) else None
        return call if known is None else known

    def same_place(indices: list[Any], walked: int | None, reverse: bool) -> bool:
        for k, index in enumerate(indices):
            wanted = [simple(at[k]), *([place[at[k]]] if at[k] in place else [])]
            if k == walked:
                wanted.append(at[k] + 1 if reverse else at[k] - 1)
            if not any(stages.equal(index, w) for w in wanted):
                return False
        return True

    def frame_like(current: te.Tensor) -> bool:
        return stages.same_extents(outer(current), frame.extents)

    def inner_variables(current: te.Tensor) -> list[Any]:
        own = [tirx.Var(f"n{k}", "int32") for k in range(len(inner(current)))]
        for var, extent in zip(own, inner(current), strict=True):
            _bind(analyzer, var, extent)
        return own

    def reach(indices: list[Any]) -> list[Any]:
        """How many elements of each axis of a stage the whole tile reads, at most."""
        bounds = [analyzer.const_int_bound(simple(substitute(i, begin))) if hasattr(i, "ty") else None for i in indices]
        return [1 if b is None else int(b.max_value) - int(b.min_value) + 1 for b in bounds]

    def visit(current: te.Tensor, indices: list[Any], top: bool, within: bool = False) -> None:
        if elements and frame.located(current, indices[0], at, inside, elements) is not None:
            return
        indices = [simple(i) for i in indices]
        if (is_table(current) and not top) or (within and is_last(current)):
            found.memory.add(current)
            return
        rank, axis = outer_rank(current), walk_axis(current)
        held = is_local(current) or axis is not None
        # A stage of the tile is looked at for the whole tile: where inside it is read makes no difference.
        tiled = held or (rank > 0 and rank == len(frame.extents) and stages.kind(current) == "map" and same_place(indices[:rank], None, False))
        key = f"{hash(current)} {indices[:rank] if tiled else indices}"
        if key in seen or (current in ready and not top):
            return
        seen.add(key)
        if tiled and not top:
            indices = [*indices[:rank], *inner_variables(current)]
        if held:
            spec = scan_spec(current.op)
            # A task still has the step before of an inclusive scan; an exclusive one holds nothing older than this step's.
            earlier = None if spec is None or spec.exclusive else axis
            aligned = stages.same_extents(outer(current), frame.extents) and same_place(
                indices[:rank], earlier, bool(spec and spec.reverse)
            )
            if not aligned:
                found.memory.add(current)
                return
            (found.walks if axis is not None else found.locals).add(current)
            for source, reads_at in _reads(current, [*at, *inner_variables(current)], analyzer):
                visit(source, reads_at, False, True)
            return
        if stages.kind(current) == "map":
            apart = not tiled and ((frame_like(current) and is_summary(current, ready)) or is_narrowed(current, ready))
            if not apart and not top:
                read = inner(current) if tiled else reach(indices)
                apart = is_repeated(current, read, frame.inner_extents(tensor), ready, elsewhere=not tiled)
                found.plain |= {current} if apart and not tiled else set()
            if apart and not top:
                found.memory.add(current)
                return
            for source, reads_at in stage_reads(current, indices):
                visit(source, reads_at, False, within)
            return
        if stages.kind(current) != "input":
            found.memory.add(current)

    own = [elements.get(k, index) for k, index in enumerate(frame.indices(at, inside))]
    visit(tensor, own, True)
    placing = {t for placed in frame.ragged.values() for t in (placed.first, placed.count)}
    found.memory |= {t for t in placing if stages.kind(t) != "input" and t not in ready}
    return found


def is_summary(tensor: te.Tensor, ready: Collection[te.Tensor]) -> bool:
    """Whether a pointwise statistic of rows says less than the stages of tiles that it is computed from: elsewhere it is read itself."""
    if len(inner(tensor)) != 1:
        return False
    below = [t for t in anchors_below(tensor, ready) if is_local(t)]
    return size_estimate(tensor.shape) < sum(size_estimate(t.shape) for t in below)


def is_narrowed(tensor: te.Tensor, ready: Collection[te.Tensor]) -> bool:
    """Whether a pointwise stage says in fewer bytes what others read of a stage of tiles: elsewhere it is read itself."""
    body = stages.body(tensor)
    if not isinstance(body, prim.Cast) or not dtype_of(body).startswith(("float", "bfloat")):
        return False
    below = [t for t in anchors_below(tensor, ready) if is_local(t)]
    fewer = all(size_estimate(tensor.shape) <= size_estimate(t.shape) for t in below)
    fewer = fewer and all(stages.element_bytes(tensor) < stages.element_bytes(t) for t in below)
    return bool(below) and fewer and frame_of(tensor, ready) is not None


def is_repeated(
    tensor: te.Tensor, read: Sequence[Any], extents: Sequence[Any], ready: Collection[te.Tensor], elsewhere: bool = False
) -> bool:
    """Whether a pointwise stage that adds up much of other tiles would be computed for many elements of a result each time anew.

    `read` are the extents of what of it the tile of a result, of `extents`, reads; `elsewhere` says that this is not its own tile.
    """
    if REPEATED * size_estimate(read) > size_estimate(extents) or _count(tensor, ready) < MANY:
        return False
    needs = cone(tensor, own_frame(tensor), ready)
    return bool(needs.memory) and not needs.walks and (elsewhere or not needs.locals)


def _count(tensor: te.Tensor, ready: Collection[te.Tensor]) -> int:
    """How many elements of stages that are not pointwise an element is made from."""
    reads = [source for source, _ in stages.reads(tensor) if source not in ready and stages.kind(source) != "input"]
    return sum(_count(source, ready) if stages.kind(source) == "map" else 1 for source in reads)


def _reads(tensor: te.Tensor, indices: list[Any], analyzer: sym.Analyzer) -> list[tuple[te.Tensor, list[Any]]]:
    """The reads of one element of a stage, reduce axes as fresh variables."""
    if stages.kind(tensor) != "reduce":
        return stage_reads(tensor, indices)
    mapping = {}
    for axis in stages.reduce_axes(tensor):
        var = tirx.Var(f"r_{axis.var.name}", "int32")
        _bind(analyzer, var, axis.dom.extent)
        mapping[axis.var] = var
    return [
        (source, [substitute(i, mapping) if hasattr(i, "ty") else i for i in at]) for source, at in stage_reads(tensor, indices)
    ]


def _bind(analyzer: sym.Analyzer, var: Any, extent: Any) -> None:
    analyzer.bind(var, ir.Range(0, extent))
