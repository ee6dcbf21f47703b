"""Sums that tiles share out among each other, gathered at the tile that they belong to.

The adjoint of keys that several query tiles read is a sum over those tiles.  As it is derived, every query tile computes its
part for all keys that it reads, and what belongs to one key tile is then summed over a few query tiles::

    X[c, j, d] = sum_i A[c, i, j] Q[c, i, d]                                  parts, float32, in memory
    y[c C + r, d] = sum over s < n of X[c + a + s, b0 + b s + r, d]           where tile c + a + s exists

A task can as well own the key tile and compute what the n query tiles say of it, their rows u = s I + i one after another::

    G[c, r, d] = sum over u < n I of A[c + a + u // I, u % I, b0 + b (u // I) + r] Q[c + a + u // I, u % I, d]

Stages that have an element for each pair (r, u) are computed again for these pairs; statistics of a row are read from memory,
where a kernel before has left them.  That trades operations for the bytes of X, written and read: `WORTH`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, te, tirx

from tilegen.autodiff.ranges import analyzer, bind, prune
from tilegen.autodiff.simplify import split_guard
from tilegen.expression import compute
from tilegen.expression.printer import text
from tilegen.expression.rebuild import replace
from tilegen.expression.walkers import (
    conjunction,
    const_int,
    factors,
    has_load,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    loads,
    prim,
    rewrite,
    substitute,
    topological,
    total,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.access import anchors_below
from tilegen.plan.cost import nbytes, stage_flops
from tilegen.plan.frames import is_local, outer, outer_rank

WORTH = 32
"""Operations that are computed again rather than have one byte written and read between kernels.

GPUs do 100 and more in the time of a byte, CPUs some 5; there what is computed again is two of seven matrix products.
"""


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
        return (shape, part.axis, part.shift, len(self.parts), part.first, self.step, self.extent, _depth(source))


def regrouped(outputs: Sequence[te.Tensor], ready: Collection[te.Tensor]) -> list[te.Tensor]:
    """`outputs`, with sums over tiles gathered where that is worth what is computed again; `ready` is in memory."""
    order = [op.output(0) for op in topological(outputs)]
    readers: dict[te.Tensor, set[te.Tensor]] = {}
    for tensor in order:
        for source, _ in stages.reads(tensor):
            readers.setdefault(source, set()).add(tensor)
    groups: dict[tuple[Any, ...], list[Shared]] = {}
    for tensor in order:
        found = shared_sum(tensor) if tensor not in ready and stages.kind(tensor) == "map" else None
        if found is not None and readers[found.parts[0].source] == {tensor} and found.parts[0].source not in outputs:
            groups.setdefault(found.signature(), []).append(found)
    mapping: dict[te.Tensor, te.Tensor] = {}
    for group in groups.values():
        gather = Gather(group[0], ready)
        new = {shared.stage: gather.stage(shared) for shared in group}
        moved = sum(2 * nbytes(shared.parts[0].source) for shared in group)
        if None not in new.values() and gather.flops() <= WORTH * moved:
            mapping |= new
    for tensor in [t for t in order if t in mapping]:
        others = {old: now for old, now in mapping.items() if old is not tensor}
        mapping[tensor] = replace([mapping[tensor]], others)[0]
    return replace(outputs, mapping)


def _depth(contraction: te.Tensor) -> int:
    (axis,) = stages.reduce_axes(contraction)
    return int(const_int(axis.dom.extent))


# ---------------------------------------------------------------- finding such sums


def shared_sum(tensor: te.Tensor) -> Shared | None:
    """`tensor` as a sum over parts of one contraction at several outer points, evenly apart; None if it is none."""
    ana = analyzer(zip(stages.axes(tensor), tensor.shape, strict=True))
    rest: list[Any] = []
    found: dict[te.Tensor, list[tuple[list[Any], list[Any]]]] = {}
    for conditions, value in _terms(stages.body(tensor)):
        if is_load(value) and _is_contraction(load_tensor(value)):
            found.setdefault(load_tensor(value), []).append((conditions, load_indices(value)))
        else:
            rest.append(value if not conditions else _guarded(conditions, value))
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


def _guarded(conditions: Sequence[Any], value: Any) -> Any:
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
    return bool(ana.can_prove(tirx.Or(tirx.Not(known), wanted))) or stages_equal(ana.simplify(wanted), ana.simplify(known))


def stages_equal(a: Any, b: Any) -> bool:
    """Whether two conditions read the same."""
    return text(a) == text(b)


def _split(index: Any) -> tuple[Any, int]:
    """An index as something and a constant."""
    if isinstance(index, prim.Add) and const_int(index.b) is not None:
        return index.a, int(const_int(index.b))
    return index, 0


# ---------------------------------------------------------------- gathering


class Gather:
    """The stages of a task that owns a key tile, made from those of the query tiles."""

    def __init__(self, shared: Shared, ready: Collection[te.Tensor]):
        part = shared.parts[0]
        self.ready = ready
        self.outer, self.axis = outer(part.source), part.axis
        self.depth, self.rows = _depth(part.source), shared.extent
        self.o = [tirx.Var(f"o{k}", "int32") for k in range(len(self.outer))]
        self.r, self.u = tirx.Var("r", "int32"), tirx.Var("u", "int32")
        self.extents: dict[Any, Any] = dict(zip(self.o, self.outer, strict=True))
        self.extents |= {self.r: self.rows, self.u: len(shared.parts) * self.depth}
        self.ana = analyzer(self.extents.items())
        tile, self.member = tirx.floordiv(self.u, self.depth), tirx.floormod(self.u, self.depth)
        self.place = [o + part.shift + tile if k == self.axis else o for k, o in enumerate(self.o)]
        self.row = part.first + tile * shared.step + self.r
        there = self.place[self.axis]
        self.exists = conjunction(prune([there >= 0, there < self.outer[self.axis]], self.ana))
        self.views: dict[Any, tuple[te.Tensor, list[Any]]] = {}
        self.frees: dict[Any, Any] = {}
        self.again: list[te.Tensor] = []

    def stage(self, shared: Shared) -> te.Tensor | None:
        """The stage of `shared` with its parts gathered."""
        source, part = shared.parts[0].source, shared.parts[0]
        rank = len(self.outer)
        own, (step,) = stages.axes(source), stages.reduce_axes(source)
        free = self.variable("x0", own[rank + 1 - (part.inner - rank)], source.shape[rank + 1 - (part.inner - rank)])
        at: dict[Any, Any] = dict(zip(own[:rank], self.place, strict=True)) | {own[part.inner]: self.row, step.var: self.member}
        at[own[rank + 1 - (part.inner - rank)]] = free
        sides = []
        for load in factors(stages.body(source)):
            side = self.read(load_tensor(load), [substitute(i, at) for i in load_indices(load)], operand=True)
            if not is_load(side):
                return None
            sides.append(side)
        if not any(self.r in variables(s) for s in sides) or not all(self.u in variables(s) for s in sides):
            return None
        k = te.reduce_axis((0, self.extents[self.u]), "u")
        order = [self.r, free] if part.inner == rank else [free, self.r]

        def body(*i: Any) -> Any:
            new = dict(zip([*self.o, *order], i, strict=True)) | {self.u: k.var}
            return te.sum(substitute(sides[0], new) * substitute(sides[1], new), axis=[k])

        names = [*(v.name for v in self.o), *(v.name for v in order)]
        shape = [*self.outer, *(self.extents[v] for v in order)]
        gathered = compute(shape, body, f"{source.op.name}_gathered", axes=names)

        def value(*i: Any) -> Any:
            new = dict(zip(stages.axes(shared.stage), i, strict=True))
            inner = [part.row if k == part.inner else part.at[k] for k in range(rank, rank + 2)]
            place = [substitute(x, new) if hasattr(x, "ty") else x for x in [*part.at[:rank], *inner]]
            return total([*(substitute(x, new) for x in shared.rest), gathered(*place)])

        stage = shared.stage
        return compute(list(stage.shape), value, stage.op.name, dict(stage.op.attrs), axes=[v.name for v in stages.axes(stage)])

    def flops(self) -> int:
        """Operations of what is computed again."""
        return sum(stage_flops(stage) for stage in self.again)

    def variable(self, name: str, like: Any, extent: Any) -> Any:
        """A variable that runs below `extent`."""
        var = tirx.Var(name, str(like.ty.dtype))
        self.extents[var] = extent
        bind(self.ana, var, extent)
        return var

    # ---------------------------------------------------------------- stages seen from a key tile

    def read(self, tensor: te.Tensor, at: list[Any], operand: bool = False) -> Any:
        """What the element `at` of a stage is, as a read of its view; an `operand` is zero where there is no such query tile."""
        at = [self.ana.simplify(i) if hasattr(i, "ty") else i for i in at]
        if stages.kind(tensor) == "input":
            return tensor(*at)
        mine = stages.same_extents(outer(tensor), self.outer)
        if stages.kind(tensor) == "map" and tensor not in self.ready and not mine:
            return self.body(tensor, at)  # no stage of a tile: part of what reads it
        met = dict.fromkeys(v for i in at if hasattr(i, "ty") for v in variables(i))
        free = [v for v in met if v not in (*self.o, self.r, self.u)]
        named = {v: self.free(k, self.extents[v]) for k, v in enumerate(free)}
        at = [substitute(i, named) if hasattr(i, "ty") else i for i in at]
        operand = operand and self.r in met and self.u in met
        key = (tensor, operand, tuple(map(text, at)))
        if key not in self.views:
            self.views[key] = self.view(tensor, at, [v for v in (self.r, self.u) if v in met], list(named.values()), operand)
        stage, axes = self.views[key]
        back = {new: old for old, new in named.items()}
        return stage(*self.o, *[back.get(v, v) for v in axes])

    def free(self, k: int, extent: Any) -> Any:
        """The k-th free variable of a view."""
        if (k, text(extent)) not in self.frees:
            self.frees[k, text(extent)] = self.variable(f"x{k}", self.r, extent)
        return self.frees[k, text(extent)]

    def view(
        self, tensor: te.Tensor, at: list[Any], met: list[Any], free: list[Any], operand: bool
    ) -> tuple[te.Tensor, list[Any]]:
        """A stage with the elements of `tensor` that the task needs, and the variables of its inner axes."""
        pair, kind = len(met) == 2, stages.kind(tensor)
        row = met == [self.u] and not free and bool(kind == "reduce" or anchors_below(tensor, self.ready))
        if tensor in self.ready or row or kind in ("scan", "scatter") or (kind == "reduce" and not pair):
            return self.made(tensor, tensor(*at), [*met, *free], [], guard=self.u in met)
        place, over = dict(zip(stages.axes(tensor), at, strict=True)), []
        if kind == "reduce":
            for axis in stages.reduce_axes(tensor):
                over.append(self.variable(f"k{len(self.extents)}", axis.var, axis.dom.extent))
                place[axis.var] = over[-1]
        value = self.resolve(stages.body(tensor), place)
        # What is read elsewhere may be the same for all query tiles: the keys themselves.
        found = set(variables(value)) | {
            v for load in loads(value) for i in load_indices(load) if hasattr(i, "ty") for v in variables(i)
        }
        axes = [v for v in (self.r, self.u) if v in found] + free
        return self.made(tensor, value, axes, over, guard=self.u in axes and not over and (operand or self.r not in axes))

    def made(self, tensor: te.Tensor, value: Any, axes: list[Any], over: list[Any], guard: bool) -> tuple[te.Tensor, list[Any]]:
        """The stage of a `value` over the outer axes and `axes`, summed `over` others; `guard`: zero where there is no query tile."""
        if guard and self.exists is not None:
            value = _guarded([self.exists], value)

        def body(*i: Any) -> Any:
            new = dict(zip([*self.o, *axes], i, strict=True))
            if not over:
                return substitute(value, new)
            inner = [te.reduce_axis((0, self.extents[v]), v.name) for v in over]
            new |= {v: axis.var for v, axis in zip(over, inner, strict=True)}
            return te.sum(substitute(value, new), axis=inner)

        shape = [*self.outer, *(self.extents[v] for v in axes)]
        stage = compute(shape, body, f"{tensor.op.name}_there", axes=[v.name for v in (*self.o, *axes)])
        if self.r in axes and self.u in axes:
            self.again.append(stage)
        return stage, axes

    def body(self, tensor: te.Tensor, at: Sequence[Any]) -> Any:
        """The value of a pointwise stage at `at`."""
        return self.resolve(stages.body(tensor), dict(zip(stages.axes(tensor), at, strict=True)))

    def resolve(self, expr: Any, at: dict[Any, Any]) -> Any:
        """`expr` at the point `at` of its stage, with every read as it is seen from here."""

        def load(call: Any) -> Any:
            return self.read(load_tensor(call), load_indices(call)) if is_load(call) else call

        value = rewrite(substitute(expr, at), ir.Call, load)
        for kind in (prim.LT, prim.LE, prim.GT, prim.GE):
            value = rewrite(value, kind, self.compared)
        for kind in (prim.And, prim.Or):
            value = rewrite(value, kind, self.joined)
        return value

    def compared(self, condition: Any) -> Any:
        """A comparison of integers in one form, without the quotients and remainders that cancel."""
        if "int" not in str(condition.a.ty.dtype) or has_load(condition):
            return condition
        low, high = (condition.b, condition.a) if isinstance(condition, (prim.GT, prim.GE)) else (condition.a, condition.b)
        apart = high - low - 1 if isinstance(condition, (prim.LT, prim.GT)) else high - low
        zero = tirx.const(0, "int32")
        known = self.ana.simplify(zero <= self.ana.simplify(apart))
        return known if const_int(known) is not None else zero <= self.ana.simplify(apart)

    def joined(self, condition: Any) -> Any:
        """A conjunction or disjunction without what is known."""
        empty, full = (1, 0) if isinstance(condition, prim.And) else (0, 1)  # what changes nothing, and what decides
        sides = [x for x in (condition.a, condition.b) if not is_const(x, empty)]
        for side in sides:
            if is_const(side, full):
                return side
        return condition if len(sides) == 2 else sides[0] if sides else condition.a
