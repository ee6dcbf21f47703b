"""Walks there and back on a GPU (`tilegen.plan.gpu.retrace`): rounds from the end, each gone through in both directions.

block    a tile of `channels`, all steps
  round    one span, from the last to the first: the states at its mark, which were loaded a round earlier
    there    groups summed up, exchanged, and gone through: what is written at every step, and what the way back needs
    back     the same from the last group to the first, with what the way there left in registers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.errors import ScheduleError
from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import MathRule
from tilegen.plan.gpu.func import Buffers, Decisions, launch, name
from tilegen.plan.gpu.lanes import Element, registers
from tilegen.plan.gpu.retrace import Retrace
from tilegen.plan.gpu.walk import LATE, WHOLE, Walk
from tilegen.plan.gpu.walk_exchange import Section
from tilegen.plan.gpu.walk_places import lane_extent
from tilegen.plan.gpu.walk_reads import Held, Place, Reads, Recorder, load
from tilegen.plan.gpu.walk_values import Step
from tilegen.schedules.rule import Gpu


def lower_retrace(kernel: Retrace, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a walk there and back; decisions: channels, width, steps, and how far `ahead` the next round is loaded."""
    groups, rest = divmod(kernel.marks.every, decisions["steps"])
    if rest or groups < 2:
        raise ScheduleError(
            f"kernel '{kernel.name}': {decisions['steps']} steps of a group, must divide the {kernel.marks.every} steps from mark to "
            "mark into two or more; tune it again"
        )
    sizes = {**decisions, "groups": groups}
    there = There(kernel, buffers, sizes, gpu, math)
    Back(kernel, there, buffers, sizes, gpu, math).emit()


class There(Walk):
    """The way there: starts from marks, keeps what the way back needs."""

    def __init__(self, kernel: Retrace, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        self.joined = kernel
        self.values: dict[te.Tensor, Any] = {}
        self.reach: dict[te.Tensor, int] = {}
        super().__init__(kernel.there, buffers, decisions, gpu, math)
        self.silent = kernel.silent

    def declare(self) -> None:
        """Registers for what is kept, and for the states at the next mark."""
        shape = self.shape
        for k, tensor in enumerate(self.joined.kept):
            slots = shape.steps + self.reach.get(tensor, 0)
            self.out[tensor] = self.values[tensor] = registers(f"kept{k}", [slots, shape.width], str(tensor.dtype))

    def next_marks(self, first: Any) -> None:
        """Load the states before step `first` into the registers of the threads that scan."""
        extent = lane_extent(self.kernel)
        assert extent is not None

        def take(section: Section, turn: int, row: Any, channel: Any) -> None:
            inside = channel if extent % self.shape.channels == 0 else tirx.min(channel, extent - 1 - self.tile)
            at = self._at_mark(self._number(section, row - section.row), first, inside)
            T.buffer_store(section.ahead, self.buffers[self.joined.marks.tensor][tuple(at)], [turn])

        for exchange in self.exchanges:
            exchange.each(self.thread, exchange.sections, take)

    def _number(self, section: Section, at: Any) -> Any:
        """The place of a section's scan in the marks, which may hold others between them."""
        places = self.joined.numbers[section.number : section.number + len(section.scans)]
        found = at + places[0]
        for k in range(1, len(places)):
            if gap := places[k] - places[k - 1] - 1:
                found = found + tirx.Select(at >= k, tirx.const(gap, "int32"), tirx.const(0, "int32"))
        return found

    def take_marks(self) -> None:
        """Start the round from the states that were loaded."""
        for exchange in self.exchanges:
            for section in exchange.sections:
                with T.unroll(0, section.carry.shape[0]) as turn:
                    T.buffer_store(section.carry, section.ahead[turn], [turn])

    def go(self, start: Any) -> None:
        """All of a round."""
        for exchange in self.exchanges:
            self._resolve(exchange, start)
        self._last_pass(start)

    def _at_mark(self, number: Any, step: Any, channel: Any) -> list[Any]:
        return [number, *self._full([*self.lead, self.tile + channel], tirx.floordiv(step, self.joined.marks.every))]

    def _slot(self, emitted: te.Tensor, at: Any, lane: Any) -> list[Any]:
        return [at, lane] if emitted in self.values else [lane]

    def _written(self) -> list[te.Tensor]:
        return [tensor for tensor in self.out if tensor not in self.values]

    def _behind(self, start: Any, scans: Sequence[te.Tensor]) -> None:
        """What the last step of the way back needs of the step after it."""
        steps = self.shape.steps
        further = [tensor for tensor in self.values if self.reach.get(tensor)]
        if not further:
            return
        time = name("time", T.Bind(self._time(start + steps)))
        with T.unroll(0, self.shape.width) as lane:
            values = self._values(steps, time, lane, scans, self.run)
            stores = [(self.values[tensor], values.at_point(tensor)) for tensor in further]
            for buffer, value in stores:
                T.buffer_store(buffer, value, [steps, lane])


class Back(Walk):
    """The way back, and all of the kernel."""

    falling = True

    def __init__(self, kernel: Retrace, there: There, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        self.there, self.joined = there, kernel
        super().__init__(kernel.back, buffers, decisions, gpu, math)
        self.backwards = there.backwards

    def _find_reads(self) -> None:
        self.backwards = self.there.backwards
        self.reads = self.there.reads
        super()._find_reads()
        # What reaches a step further is computed there, from what is read there.
        kernel = self.there.kernel
        with IRBuilder(), T.prim_func(s_tir=False):
            T.func_name("reads")
            point = [tirx.Var(f"p{k}", "int32") for k in range(len(kernel.space))]
            at = tirx.Var("t", "int32")
            recorder = self.there._recorder(Place(point, kernel.space, at, kernel.extent))
            values = Step(kernel, recorder, self.math, point, at - 1 if self.backwards else at + 1, {})
            for scan in self.there.scans:
                values.hold(scan, tirx.Var(scan.op.name, str(scan.dtype)))
            for tensor, reach in self.there.reach.items():
                if reach:
                    T.evaluate(values.at_point(tensor))

    def _recorder(self, place: Place) -> Recorder:
        return Noting(self.buffers, self.reads, place, self.there)

    def _memory(self, place: Place, at: Any, lane: Any) -> Held:
        return Remembering(self.buffers, self.reads, place, at, lane, self.there)

    def emit(self) -> None:
        """The kernel."""
        shape, there = self.shape, self.there
        own, blocks = self._grid()
        with launch([blocks], shape.threads) as ((block,), thread):
            there._places(block, thread, own)
            for attribute in ("thread", "tx", "group", "lead", "fits", "places", "tile"):
                setattr(self, attribute, getattr(there, attribute))
            self._open()
            for window in self.reads.steady():
                load(window, self.buffers[window.tensor], window.now, 1, self.places, lambda slot: slot)
            for exchange in there.exchanges:
                there._seed_factors(exchange)
            self._seed()
            rounds = tirx.floordiv(self.kernel.extent + (shape.span - 1), shape.span)
            moving, group = self.reads.moving(), self.group * shape.steps
            last = name("last", T.Bind((rounds - 1) * shape.span))
            if self.ahead:
                there._load(moving, last + group, [window.ahead for window in moving])
            there.next_marks(last)
            with T.serial(0, rounds) as turn:
                first = name("mark", T.Bind(last - turn * shape.span))
                # Before the first round comes the first again: nobody looks at it.
                before = name("before", T.Bind(tirx.max(first - shape.span, 0)))
                start = name("start", T.Bind(first + group))
                there.take_marks()
                there.next_marks(before)
                if self.ahead:
                    self._take_up(moving)
                else:
                    there._load(moving, start, [window.now for window in moving])
                if self.ahead == WHOLE:
                    there._load(moving, before + group, [window.ahead for window in moving])
                there.go(start)
                for exchange in self.exchanges:
                    self._resolve(exchange, start)
                if self.ahead == LATE:
                    there._load(moving, before + group, [window.ahead for window in moving])
                self._last_pass(start)

    def _open(self) -> None:
        """Registers of both ways, and shared memory, which they use one after the other."""
        there, own = self.there, self.exchanges
        there.ahead = self.ahead
        there.exchanges = [*there.exchanges, *own]
        there._declare()
        there.exchanges = there.exchanges[: len(there.exchanges) - len(own)]
        there.declare()
        for exchange in there.exchanges:
            for k, section in enumerate(exchange.sections):
                section.ahead = registers(f"mark{k}", [section.carry.shape[0]], section.dtype)
        self.rows, self.kept, self.ends = there.rows, {}, {}
        self._hold()


class Noting(Recorder):
    """Notes how far along the way there the way back reads what is kept of it."""

    def __init__(self, buffers: Mapping[te.Tensor, Any], reads: Reads, place: Place, there: There):
        super().__init__(buffers, reads, place)
        self.there = there

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.there.joined.kept or super().__contains__(tensor)

    def __getitem__(self, tensor: te.Tensor) -> Any:
        if tensor not in self.there.joined.kept:
            return super().__getitem__(tensor)

        def read(indices: Sequence[Any]) -> Any:
            away = distance(self.there, self.place, indices)
            self.there.reach[tensor] = max(self.there.reach.get(tensor, 0), away)
            return tirx.Var(tensor.op.name, str(tensor.dtype))

        return Element(read)


class Remembering(Held):
    """Memory of the way back: what the way there left comes first."""

    def __init__(self, buffers: Mapping[te.Tensor, Any], reads: Reads, place: Place, at: Any, lane: Any, there: There):
        super().__init__(buffers, reads, place, at, lane)
        self.there = there

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.there.values or super().__contains__(tensor)

    def __getitem__(self, tensor: te.Tensor) -> Any:
        values = self.there.values.get(tensor)
        if values is None:
            return super().__getitem__(tensor)
        return Element(lambda indices: values[self.at + distance(self.there, self.place, indices), self.lane])


def distance(there: There, place: Place, indices: Sequence[Any]) -> int:
    """Steps along the way there from a point to the element at `indices`."""
    away = const_int(sym.Analyzer().simplify(indices[there.kernel.position] - place.step))
    assert away is not None
    return -away if there.backwards else away
