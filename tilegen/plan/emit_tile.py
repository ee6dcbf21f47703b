"""Tile kernels as TIR.

::

    parallel for the outer axes that are not walked:
        state before the first tile
        for the walked axis, if there is one:
            one loop nest for every local stage, in order
            one for every result, which writes its part of memory
            the state moves on

Local stages have buffers over their whole domain, which compact to one tile; a state has one without the walked axis.
A contraction reads its operands through copies in which the vectorised axis is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tvm import ir, sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import conjunction, const_int, substitute
from tilegen.plan import stages
from tilegen.plan.evaluate import MathRule, identity
from tilegen.plan.frames import outer_rank
from tilegen.plan.idle import busy
from tilegen.plan.scope import scope
from tilegen.plan.sides import Sides
from tilegen.plan.sums import emit_row_sum, farthest_first, is_row_sum
from tilegen.plan.tile_values import Oriented, State, TileEvaluator
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import INNER


class TileEmitter(Sides):
    """Emits one kernel into the function being built."""

    def __init__(self, kernel: TileKernel, buffers: Mapping[te.Tensor, Any], math: MathRule):
        self.kernel, self.math = kernel, math
        self.targets = {t: buffers[t] for t in kernel.emits}
        self.memory = {t: b for t, b in buffers.items() if t not in self.targets}
        self.count = 0
        self.turned: dict[tuple[te.Tensor, int], Any] = {}
        self.binding: dict[Any, Any] = {}  # block variables of the nest being emitted -> its loops
        self.rank = len(kernel.space)
        self.know_branch()
        self.parallel = [k for k in range(self.rank) if k != kernel.walked]
        self.local = {t: self.buffer(t.op.name, list(t.shape), t) for t in kernel.locals}
        self.before = {t: self.buffer(f"{t.op.name}_before", self._unwalked(t), t) for t in kernel.anchors}
        restarted = [t for t in kernel.anchors if scan_spec(t.op).reset]
        self.entered = {t: self.buffer(f"{t.op.name}_entered", self._unwalked(t), t) for t in restarted}
        self.after = {t: self.buffer(f"{t.op.name}_after", self._unwalked(t), t) for t in kernel.anchors}

    def emit(self) -> None:
        """The whole kernel."""
        kernel = self.kernel
        with ExitStack() as stack:
            at: list[Any] = [tirx.const(0, "int32") if const_int(n) == 1 and k in self.parallel else None for k, n in enumerate(kernel.space)]
            tasks = [k for k in self.parallel if at[k] is None]
            rest = stack.enter_context(T.parallel(0, _product(kernel.space[k] for k in tasks))) if tasks else None
            for k in reversed(tasks):
                # The first axis is what is left of the task number: no remainder to take.
                at[k] = rest if k == tasks[0] else tirx.floormod(rest, kernel.space[k])
                rest = tirx.floordiv(rest, kernel.space[k])
            for scan in kernel.anchors:
                self._start(scan, at)
            if kernel.walked is not None:
                step = stack.enter_context(T.serial(0, kernel.extent))
                at[kernel.walked] = kernel.extent - 1 - step if kernel.reverse else step
            needed, apart = self._needed(at)
            with ExitStack() as inside:
                if needed is not None:
                    inside.enter_context(T.If(needed))
                    inside.enter_context(T.Then())
                # A scope of its own for the step: the state that moves on behind it is a write after a read, and primitives need
                # not reason about quotients of the task number.
                with scope(f"{kernel.name}_step"):
                    self._body(self._axes(at), [] if apart else kernel.emits)
                for scan in kernel.anchors:
                    self._copy(self.after[scan], self.before[scan], self._parallel_at(at), self.inner_of(scan))
            if apart:
                self.after = self.before
                with scope(f"{kernel.name}_results"):
                    axes = self._axes(at)
                    for tensor in kernel.emits:
                        self._write(tensor, axes)

    def _axes(self, at: Sequence[Any]) -> list[Any]:
        return [T.axis.spatial(n, index) for n, index in zip(self.kernel.space, at, strict=True)]

    def _needed(self, at: list[Any]) -> tuple[Any, bool]:
        """(the condition under which this step has work to do, or None; whether results are written even where it has none)."""
        values, counts, adds = self._values(at, [], sym.Analyzer()), self.kernel.elements(at), busy(self.kernel, at)
        if adds is not None:
            return values.resolved(adds), True
        return (tirx.any(*[values.resolved(count) > 0 for count in counts]) if counts else None), False

    def _body(self, at: list[Any], emits: list[te.Tensor]) -> None:
        for scan in self.entered:
            self._enter(scan, at)
        own = {*self.kernel.locals, *self.kernel.anchors, *self.costly_on_one_side()}
        for tensor in sorted(own, key=self.position):
            with self.where_needed(tensor, at):
                if tensor in self.after:
                    self._advance(tensor, at)
                else:
                    nests = {"map": self._map, "scan": self._inner_scan}
                    nests.get(stages.kind(tensor), self._reduce)(tensor, at)
        for tensor in emits:
            self._write(tensor, at)

    # ---------------------------------------------------------------- nests

    def nest(
        self,
        role: str,
        at: Sequence[Any],
        extents: Sequence[Any],
        over: Sequence[Any],
        body: Callable[[list[Any], list[Any], list[Any], sym.Analyzer], None],
    ) -> None:
        """A block over inner `extents` and reduced `over` at outer point `at`; body(outer, inner, reduced variables, analyzer)."""
        name = f"{self.kernel.name}_{role}{self.count}"
        self.count += 1
        with ExitStack() as stack:
            ranges = [*extents, *over]
            loops: list[Any] = []
            if ranges:
                frame = stack.enter_context(T.grid(*ranges))
                loops = [frame] if isinstance(frame, ir.Var) else list(frame)
            with T.sblock(name):
                analyzer = sym.Analyzer()
                spaces = [k for k in range(len(at)) if at[k] is not None]
                outer: list[Any] = [None] * len(at)
                for k in spaces:
                    outer[k] = T.axis.spatial(self.kernel.space[k], at[k])
                    # An axis with one place keeps its variable: primitives then see that what is written there is what is read.
                    if const_int(self.kernel.space[k]) != 1:
                        analyzer.bind(outer[k], ir.Range(0, self.kernel.space[k]))
                inner = [T.axis.spatial(n, loop) for n, loop in zip(extents, loops, strict=False)]
                steps = [T.axis.reduce(n, loop) for n, loop in zip(over, loops[len(extents) :], strict=True)]
                for var, extent in zip([*inner, *steps], ranges, strict=True):
                    analyzer.bind(var, ir.Range(0, extent))
                T.sblock_attr({INNER: len(ranges)})
                self.binding = dict(
                    zip([*[outer[k] for k in spaces], *inner, *steps], [*[at[k] for k in spaces], *loops], strict=True)
                )
                body(outer, inner, steps, analyzer)

    def _values(
        self, outer: Sequence[Any], inner: Sequence[Any], analyzer: Any, extra: Mapping[Any, Any] | None = None
    ) -> TileEvaluator:
        walked = self.kernel.walked
        came = {
            t: self.entered.get(t, self.before[t]) if scan_spec(t.op).exclusive else self.before[t] for t in self.kernel.anchors
        }
        states = (
            {t: State(t, walked, outer[walked], came[t], self.after[t]) for t in self.kernel.anchors}
            if walked is not None
            else {}
        )
        visible = {**self.memory, **self.local, **states, **(extra or {})}
        values = TileEvaluator(self.kernel, visible, self.math, [*outer, *inner], analyzer)
        values.tile = {*self.local, *states}
        values.branch, values.side, values.chosen = self.branch, self.side, self.chosen
        return values

    def _reduce(self, tensor: te.Tensor, at: Sequence[Any]) -> None:
        """A reduction over static axes into its local buffer."""
        kind, buffer = stages.reduction(tensor), self.local[tensor]
        extents, ranges = self.inner_of(tensor), [axis.dom.extent for axis in stages.reduce_axes(tensor)]
        identity_ = identity(kind, str(tensor.dtype))
        packed = self._packed(tensor, at)
        turned = self._turned(tensor, at)

        def values_at(outer: list[Any], inner: list[Any], analyzer: sym.Analyzer) -> TileEvaluator:
            natural = self._values(outer, inner, analyzer, packed).buffers
            oriented = {source: Oriented(natural[source], copy, moved) for (source, moved), copy in turned.items()}
            for view in oriented.values():
                view.column = inner[-1]
            return self._values(outer, inner, analyzer, {**packed, **oriented})

        def body(outer: list[Any], inner: list[Any], steps: list[Any], analyzer: sym.Analyzer) -> None:
            with T.init():
                T.buffer_store(buffer, identity_, [*outer, *inner])
            far = farthest_first(tensor, steps, self.kernel.reverse)
            value = values_at(outer, inner, analyzer).reduce_value(tensor, far, buffer[(*outer, *inner)])
            T.buffer_store(buffer, value, [*outer, *inner])

        if is_row_sum(tensor):
            emit_row_sum(self, tensor, at, values_at)
            return
        self.nest("reduce", at, extents, ranges, body)

    def _packed(self, tensor: te.Tensor, at: Sequence[Any]) -> dict[te.Tensor, Any]:
        """Pointwise operands of a reduction, computed once for the tile instead of once for every sum they enter."""
        packed: dict[te.Tensor, Any] = {}
        for source, _ in stages.reads(tensor):
            if stages.kind(source) != "map" or source in self.memory or source in packed or outer_rank(source) != self.rank:
                continue
            if not stages.same_extents(list(source.shape)[: self.rank], self.kernel.space) or not self._aligned(tensor, source):
                continue
            packed[source] = self._map(source, at)
        return packed

    def _turned(self, tensor: te.Tensor, at: Sequence[Any]) -> dict[tuple[te.Tensor, int], Any]:
        """Copies of operands in which the last axis of the result, the vectorised one, is contiguous."""
        own = stages.axes(tensor)
        found: dict[tuple[te.Tensor, int], Any] = {}
        if len(own) <= self.rank:
            return found
        for source, indices in stages.reads(tensor):
            moved = [k for k, i in enumerate(indices) if k >= self.rank and hasattr(i, "same_as") and i.same_as(own[-1])]
            computed = source in self.local or source in self.after
            if len(moved) != 1 or moved[0] == len(indices) - 1 or not computed or not self._aligned(tensor, source):
                continue
            if source not in {known for known, _ in found}:
                found[source, moved[0]] = self._turn(source, moved[0], at)
        return found

    def _turn(self, source: te.Tensor, moved: int, at: Sequence[Any]) -> Any:
        """A copy of a tile with one axis moved last; made once a step."""
        if (source, moved) in self.turned:
            return self.turned[source, moved]
        order = [k for k in range(len(source.shape)) if k != moved] + [moved]
        buffer = self.buffer(f"{source.op.name}_turned", [source.shape[k] for k in order], source)

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            natural: list[Any] = [*outer, *([None] * len(inner))]
            for k, var in zip(order[self.rank :], inner, strict=True):
                natural[k] = var
            T.buffer_store(buffer, self._values(outer, inner, analyzer).element(source, natural), [*outer, *inner])

        self.nest("turn", at, [source.shape[k] for k in order[self.rank :]], [], body)
        self.turned[source, moved] = buffer
        return buffer

    def _aligned(self, tensor: te.Tensor, source: te.Tensor) -> bool:
        axes = stages.axes(tensor)[: self.rank]
        return all(
            len(indices) >= self.rank and all(i.same_as(a) for i, a in zip(indices, axes, strict=False) if hasattr(i, "same_as"))
            for read, indices in stages.reads(tensor)
            if read in {source}  # one stage may have several objects
        )

    def _map(self, tensor: te.Tensor, at: Sequence[Any]) -> Any:
        """A pointwise stage into a local buffer; computed once a step."""
        if tensor in self.local:
            return self.local[tensor]
        buffer = self.buffer(tensor.op.name, list(tensor.shape), tensor)

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            values = self._values(outer, inner, analyzer)
            T.buffer_store(buffer, values.value_at(tensor, [*outer, *inner]), [*outer, *inner])

        self.nest("map", at, self.inner_of(tensor), [], body)
        self.local[tensor] = buffer
        return buffer

    def _inner_scan(self, tensor: te.Tensor, at: Sequence[Any]) -> None:
        """A scan inside the tile: the element before is read back from the result."""
        spec, sources, buffer = scan_spec(tensor.op), scan_inputs(tensor.op), self.local[tensor]
        axis = spec.axis - self.rank
        extents = self.inner_of(tensor)
        length = extents[axis]
        order = [*[k for k in range(len(extents)) if k != axis], axis]

        def body(outer: list[Any], loops: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            inner: list[Any] = [None] * len(extents)
            for k, var in zip(order, loops, strict=True):
                inner[k] = var
            step = inner[axis]
            place = (length - 1 - step) if spec.reverse else step
            inner[axis] = place
            before_place = place + 1 if spec.reverse else place - 1
            here = [*outer, *inner]
            there = [*outer, *inner[:axis], before_place, *inner[axis + 1 :]]
            values = self._values(outer, inner, analyzer)
            T.buffer_store(buffer, values.scan_value(tensor, sources, here, there, step == 0, buffer), here)

        self.nest("scan", at, [extents[k] for k in order], [], body)

    # ---------------------------------------------------------------- walked states

    def _start(self, scan: te.Tensor, at: Sequence[Any]) -> None:
        initial = scan_inputs(scan.op).get("initial")
        kind = {"logsumexp": "max"}.get(scan_spec(scan.op).kind, scan_spec(scan.op).kind)

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            place = [o for o in outer if o is not None]
            values = TileEvaluator(self.kernel, self.memory, self.math, [*place, *inner], analyzer)
            value = identity(kind, str(scan.dtype)) if initial is None else values.value_at(initial, [*place, *inner])
            T.buffer_store(self.before[scan], value, [*place, *inner])

        self.nest("start", at, self.inner_of(scan), [], body)

    def _enter(self, scan: te.Tensor, at: Sequence[Any]) -> None:
        """The state with which a scan comes to this tile: another where a sequence starts.  Readers of an exclusive one get this."""

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            place = [*self._parallel_at(outer), *inner]
            value = self._values(outer, inner, analyzer).restarted(scan, [*outer, *inner], self.before[scan][tuple(place)])
            T.buffer_store(self.entered[scan], value, place)

        self.nest("enter", at, self.inner_of(scan), [], body)

    def _advance(self, scan: te.Tensor, at: Sequence[Any]) -> None:
        sources = scan_inputs(scan.op)
        x = sources["x"]
        operands = {x: self._map(x, at)} if stages.kind(x) == "map" and self._tiled(x) else {}
        self.local |= operands

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            values = self._values(outer, inner, analyzer)
            place = [*self._parallel_at(outer), *inner]
            before = self.entered.get(scan, self.before[scan])[tuple(place)]
            value = values.walk_value(scan, sources, [*outer, *inner], before, restarted=scan in self.entered)
            T.buffer_store(self.after[scan], value, place)

        self.nest("advance", at, self.inner_of(scan), [], body)

    def _copy(self, source: Any, target: Any, at: Sequence[Any], extents: Sequence[Any]) -> None:
        full: list[Any] = [None] * self.rank
        for k, index in zip(self.parallel, at, strict=True):
            full[k] = index

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            place = [*[o for o in outer if o is not None], *inner]
            T.buffer_store(target, source[tuple(place)], place)

        self.nest("carry", full, extents, [], body)

    # ---------------------------------------------------------------- results

    def _write(self, tensor: te.Tensor, at: Sequence[Any]) -> None:
        frame = self.kernel.frames[tensor]
        target = self.targets[tensor]

        def body(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
            values = self._values(outer, inner, analyzer)
            values.fixed = {axis: (place, outer[axis]) for axis, place in frame.fixed.items()}
            if frame.ragged:
                self._write_ragged(tensor, outer, inner, values)
                return
            indices = frame.indices(outer, inner)
            guard = conjunction(g for g in frame.guards(tensor, outer, indices) if not analyzer.can_prove(g))
            if guard is not None:
                T.where(substitute(guard, self.binding))
            T.buffer_store(target, values.value_at(tensor, indices), indices)

        self.nest("write", at, frame.inner_extents(tensor), [], body)

    def _write_ragged(self, tensor: te.Tensor, outer: list[Any], inner: list[Any], values: TileEvaluator) -> None:
        """A result whose elements tables place in tiles: both ends of the tile are read, then it is written like any other."""
        frame = self.kernel.frames[tensor]
        reads, counts = (
            {k: values.resolved(read) for k, read in found.items()} for found in (frame.firsts(outer), frame.counts(outer))
        )
        here = frame.indices(outer, inner, reads)
        guards = [here[k] - reads[k] < counts[k] for k in reads] + frame.guards(tensor, outer, here)
        T.where(substitute(tirx.all(*guards), self.binding))
        indices = frame.indices(outer, inner, {k: values.bound_to(f"first{k}", read) for k, read in reads.items()})
        values.located = lambda placing, index: frame.located(placing, index, outer, inner, {k: indices[k] for k in reads})
        T.buffer_store(self.targets[tensor], values.value_at(tensor, indices), indices)

    # ---------------------------------------------------------------- small things

    def _tiled(self, tensor: te.Tensor) -> bool:
        return outer_rank(tensor) == self.rank and stages.same_extents(list(tensor.shape)[: self.rank], self.kernel.space)

    def inner_of(self, tensor: te.Tensor) -> list[Any]:
        return list(tensor.shape)[self.rank :]

    def _unwalked(self, tensor: te.Tensor) -> list[Any]:
        return [n for k, n in enumerate(tensor.shape) if k != self.kernel.walked]

    def _parallel_at(self, at: Sequence[Any]) -> list[Any]:
        return [at[k] for k in self.parallel]

    def buffer(self, name: str, shape: Sequence[Any], tensor: te.Tensor) -> Any:
        buffer = T.sblock_alloc_buffer(list(shape) or [1], str(tensor.dtype))
        IRBuilder.name(f"{self.kernel.name}_{name.replace('.', '_')}", buffer)
        return buffer


def _product(extents: Any) -> Any:
    result: Any = None
    for extent in extents:
        result = extent if result is None else result * extent
    return result if const_int(result) is None else const_int(result)


def emit_tile(kernel: TileKernel, buffers: Mapping[te.Tensor, Any], math: MathRule) -> None:
    """Emit `kernel`; `buffers` are the function's arguments."""
    TileEmitter(kernel, buffers, math).emit()
