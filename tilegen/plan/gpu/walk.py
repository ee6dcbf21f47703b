"""Walks on a GPU: a block owns some channels and goes along the axis in rounds, all groups of steps of a round at once.

    block    a tile of `channels`, all steps
      round    groups x steps of the walk
        thread   `width` channels, one group of consecutive steps

In every round each stratum of scans (`tilegen.plan.gpu.walk_strata`) is summed up group by group, exchanged
(`tilegen.plan.gpu.walk_exchange`), and known to all groups from then on; the last pass over a group's steps has the true states
and writes what is written at every step.  With one group there is nothing to exchange: a thread walks its channels alone.

Steps behind the end are computed like all others, on the last element again, and change nothing that is written: they come
after every step that exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.expression.scan import scan_inputs
from tilegen.plan import stages
from tilegen.plan.evaluate import Evaluator, MathRule, combine
from tilegen.plan.gpu.func import Buffers, Decisions, barrier, launch, name
from tilegen.plan.gpu.lanes import neighbours, registers
from tilegen.plan.gpu.reduce import Reduction
from tilegen.plan.gpu.toeplitz import Toeplitz
from tilegen.plan.gpu.vanish import muting
from tilegen.plan.gpu.walk_ending import Ending
from tilegen.plan.gpu.walk_exchange import Exchange, Marker, Shape, exchanges
from tilegen.plan.gpu.walk_reads import Held, Place, Reads, Recorder, Window, load, row_stride, rows
from tilegen.plan.gpu.walk_strata import Stratum, closure, decay_of, reductions_of, scans_of, strata
from tilegen.plan.gpu.walk_values import Step, neutral
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

MOST_PARTIAL = 16
"""Sums of a thread that are first added up group by group, which keeps their error small, if there are no more of them."""

LATE, WHOLE = 1, 2
"""When the next round is loaded: while the last pass over this one runs, or during all of it; 0 is at its own start."""


def lower_walk(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a walk; decisions: channels, width, steps, groups, and how far `ahead` the next round is loaded; or those
    of a convolution or reduction."""
    if "span" in decisions:
        Toeplitz(kernel, buffers, decisions, gpu, math).emit()
    elif "strip" in decisions:
        Reduction(kernel, buffers, decisions, math).emit()
    else:
        Walk(kernel, buffers, decisions, gpu, math).emit()


class Walk(Ending):
    """One walk being emitted.

    Parameters
    ----------
    falling : whether the steps of a round are taken from the last one to the first, as in a walk that retraces another one.
    silent : what reads as zero behind the end.
    """

    falling = False
    silent: Collection[te.Tensor] = ()

    def __init__(self, kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        shape = Shape(decisions["groups"], decisions["channels"], decisions["width"], decisions["steps"])
        super().__init__(kernel, buffers, shape, gpu, math)
        self.ahead = decisions["ahead"]
        self.strata = strata(kernel, self.ready)
        self.scans, self.reductions = scans_of(kernel), reductions_of(kernel)
        self.exchanges = exchanges(self.strata, self.shape, self.falling) if self.shape.groups > 1 else []
        self.reads = Reads(self.lane, self.shape.width, self.backwards)
        self._find_reads()
        mute = muting(kernel)
        self.muted = mute is not None and self.reads.follows(mute)
        if self.muted:
            self.silent = [mute]

    # ---------------------------------------------------------------- what is read

    def _recorder(self, place: Place) -> Recorder:
        return Recorder(self.buffers, self.reads, place)

    def _memory(self, place: Place, at: Any, lane: Any) -> Held:
        return Held(self.buffers, self.reads, place, at, lane)

    def _find_reads(self) -> None:
        """Windows of everything that the walk reads, found by evaluating one step on the side."""
        kernel = self.kernel
        with IRBuilder(), T.prim_func(s_tir=False):
            T.func_name("reads")
            point = [tirx.Var(f"p{k}", "int32") for k in range(len(kernel.space))]
            at = tirx.Var("t", "int32")
            values = Step(kernel, self._recorder(Place(point, kernel.space, at, kernel.extent)), self.math, point, at, {})
            for scan in self.scans:
                values.hold(scan, tirx.Var(scan.op.name, str(scan.dtype)))
            for scan in self.scans:
                T.evaluate(values.advance(scan))
                for exchange in self.exchanges:
                    if scan in exchange.stratum.scans:
                        for section in exchange.sections:
                            if section.decay is not None and scan is section.scans[0]:
                                T.evaluate(values.passed(section.decay, scan, tirx.const(1, str(scan.dtype))))
            for tensor in [*kernel.emits, *kernel.latches]:
                T.evaluate(values.at_point(tensor))
            for anchor in self.reductions:
                T.evaluate(values.added(anchor, neutral(anchor), tirx.const(True, "bool")))

    # ---------------------------------------------------------------- emission

    def emit(self) -> None:
        """The kernel."""
        shape = self.shape
        own, blocks = self._grid()
        with launch([blocks], shape.threads) as ((block,), thread):
            self._places(block, thread, own)
            self._declare()
            for window in self.reads.steady():
                load(window, self.buffers[window.tensor], window.now, 1, self.places, lambda slot: slot)
            self._seed()
            rounds = tirx.floordiv(self.kernel.extent + (shape.span - 1), shape.span)
            moving = self.reads.moving()
            first = self.group * shape.steps
            if self.ahead:
                self._load(moving, first, [window.ahead for window in moving])
            with T.serial(0, rounds) as turn:
                start = name("start", T.Bind(turn * shape.span + first))
                if self.ahead:
                    self._take_up(moving)
                else:
                    self._load(moving, start, [window.now for window in moving])
                if self.ahead == WHOLE:
                    self._load(moving, start + shape.span, [window.ahead for window in moving])
                if self.kernel.marks is not None and shape.groups == 1:
                    self._mark_all(turn)
                for exchange in self.exchanges:
                    self._resolve(exchange, start, self._marker(turn))
                if self.ahead == LATE:
                    self._load(moving, start + shape.span, [window.ahead for window in moving])
                self._last_pass(start)
            self._finish()

    def _take_up(self, windows: list[Window]) -> None:
        """Begin a round with what was loaded ahead."""
        for window in windows:
            slots = self.shape.steps + window.high - window.low
            with T.unroll(0, slots) as slot, T.unroll(0, window.width) as lane:
                T.buffer_store(window.now, window.ahead[slot, lane], [slot, lane])

    def _declare(self) -> None:
        """Registers for everything, and shared memory."""
        shape = self.shape
        for k, window in enumerate(self.reads.windows.values()):
            slots = shape.steps + window.high - window.low if window.moves else 1
            dtype = str(window.tensor.dtype)
            window.now = registers(f"read{k}", [slots, window.width], dtype)
            if window.moves and self.ahead:
                window.ahead = registers(f"next{k}", [slots, window.width], dtype)
        self._hold()
        self._shared()
        for exchange in self.exchanges:
            exchange.open()

    def _hold(self) -> None:
        """Registers for states, sums and results."""
        shape = self.shape
        self.begin = {scan: registers(f"begin{k}", [shape.width], str(scan.dtype)) for k, scan in enumerate(self.scans)}
        self.run = {scan: registers(f"run{k}", [shape.width], str(scan.dtype)) for k, scan in enumerate(self.scans)}
        self.sums = {a: registers(f"sum{k}", [shape.width], str(a.dtype)) for k, a in enumerate(self.reductions)}
        few = len(self.reductions) * shape.width <= MOST_PARTIAL
        self.part = {a: registers(f"part{k}", [shape.width], str(a.dtype)) for k, a in enumerate(self.reductions) if few}
        self.out = {e: registers(f"out{k}", [shape.width], str(e.dtype)) for k, e in enumerate(self.kernel.emits)}

    # ---------------------------------------------------------------- loads

    def _load(self, windows: list[Window], start: Any, targets: list[Any]) -> None:
        """Fill the windows of the group that starts at `start`: without checks where all of its steps exist."""
        if not windows:
            return
        low, high = min(w.low for w in windows), max(w.high for w in windows)
        extent, steps = self.kernel.extent, self.shape.steps

        def fill(near: Any, reverse: bool | None) -> None:
            for window, target in zip(windows, targets, strict=True):
                at = lambda slot, low=window.low: self._time(near(start + (slot + low)))  # noqa: E731
                slots = steps + window.high - window.low
                load(window, self.buffers[window.tensor], target, slots, self.places, at, reverse)
                if reverse is None and window.tensor in self.silent:
                    with T.unroll(0, slots) as slot, T.unroll(0, window.width) as lane:
                        exists = start + (slot + window.low) < extent
                        zero = tirx.const(0, str(window.tensor.dtype))
                        T.buffer_store(target, tirx.Select(exists, target[slot, lane], zero), [slot, lane])

        whole = start + (steps + high) <= extent
        # Said in other words, not as the other branch: nvcc would join the two, and compute all addresses step by step.
        ragged = extent - start < steps + high
        with T.If(tirx.all(start >= -low, whole) if low < 0 else whole), T.Then():
            fill(lambda step: step, self.backwards)
        with T.If(tirx.any(start < -low, ragged) if low < 0 else ragged), T.Then():
            fill(lambda step: tirx.min(tirx.max(step, 0), extent - 1) if low < 0 else tirx.min(step, extent - 1), None)

    # ---------------------------------------------------------------- passes

    @contextmanager
    def _steps(self, start: Any) -> Iterator[tuple[Any, Any, Any]]:
        """A loop over the steps of a group: (number in the group, number in the walk, index on the walked axis)."""
        with T.unroll(0, self.shape.steps) as turn:
            at = self.shape.steps - 1 - turn if self.falling else turn
            step = name("step", T.Bind(start + at))
            time = name("time", T.Bind(self._time(step)))
            yield at, step, time

    def _values(self, at: Any, time: Any, lane: Any, scans: Sequence[te.Tensor], states: dict[te.Tensor, Any]) -> Step:
        point = self._point(lane)
        place = Place(point, self.kernel.space, time, self.kernel.extent)
        values = Step(self.kernel, self._memory(place, at, lane), self.math, point, time, {})
        for scan in scans:
            values.hold(scan, states[scan][lane])
        return values

    def _seed(self) -> None:
        """States before the first step, and sums of nothing."""
        shape = self.shape
        for anchor, buffer in self.sums.items():
            with T.unroll(0, shape.width) as lane:
                T.buffer_store(buffer, neutral(anchor), [lane])
        if shape.groups == 1:
            for scan in self.scans:
                with T.unroll(0, shape.width) as lane:
                    values = Evaluator(self.kernel, self.buffers, self.math, self._point(lane), None, {})
                    T.buffer_store(self.run[scan], values.start(scan), [lane])
            return
        for exchange in self.exchanges:
            self._seed_carries(exchange)
            self._seed_factors(exchange)

    def _hand_over(self, exchange: Exchange, scans: Sequence[te.Tensor], value: Any, field: str) -> None:
        """Give the scanning threads a value of every channel, by way of the first group's row."""
        barrier()
        with T.If(self.group == 0), T.Then():
            for scan in scans:
                with T.unroll(0, self.shape.width) as lane:
                    T.buffer_store(self.rows[str(scan.dtype)], value(scan, lane), [exchange.row_of(scan), self._cell(lane)])
        barrier()

        def take(section: Any, turn: int, row: Any, channel: Any) -> None:
            T.buffer_store(getattr(section, field), self.rows[section.dtype][row, channel], [turn])

        exchange.each(self.thread, [section for section in exchange.sections if section.scans[0] in scans], take)
        barrier()

    def _seed_carries(self, exchange: Exchange) -> None:
        def value(scan: te.Tensor, lane: Any) -> Any:
            return Evaluator(self.kernel, self.buffers, self.math, self._point(lane), None, {}).start(scan)

        given = [section for section in exchange.sections if any("initial" in scan_inputs(scan.op) for scan in section.scans)]
        for section in exchange.sections:
            if section not in given:
                with T.unroll(0, section.carry.shape[0]) as turn:
                    T.buffer_store(section.carry, neutral(section.scans[0]), [turn])
        if given:
            self._hand_over(exchange, [scan for section in given for scan in section.scans], value, "carry")

    def _seed_factors(self, exchange: Exchange) -> None:
        """What a whole group passes on where every step passes on the same."""
        steady = [scan for section in exchange.sections if section.factor is not None for scan in section.scans]
        if not steady:
            return
        power = {scan: registers(f"power{k}", [self.shape.width], str(scan.dtype)) for k, scan in enumerate(steady)}
        with T.unroll(0, self.shape.width) as lane:
            values = self._values(0, self._time(tirx.const(0, "int32")), lane, [], {})
            for scan, buffer in power.items():
                value = product = values.passed(decay_of(scan), scan, tirx.const(1, str(scan.dtype)))
                for _ in range(self.shape.steps - 1):
                    product = product * value
                T.buffer_store(buffer, product, [lane])
        self._hand_over(exchange, steady, lambda scan, lane: power[scan][lane], "factor")

    def _mark_all(self, turn: Any) -> None:
        """The states of a thread that walks alone."""
        mark = self._marker(turn)
        assert mark is not None
        with T.unroll(0, self.shape.width) as lane:
            for number, scan in enumerate(scan for stratum in self.strata for scan in stratum.scans):
                mark(number, 0, self.tx * self.shape.width + lane, self.run[scan][lane])

    def _resolve(self, exchange: Exchange, start: Any, mark: Marker | None = None) -> None:
        """Sum up a stratum over the thread's group, exchange, and take up the state in which the group starts."""
        stratum, width = exchange.stratum, self.shape.width
        passed = [registers(f"pass{k}", [width], section.dtype) for k, section in enumerate(exchange.decays())]
        with T.unroll(0, width) as lane:
            for scan in stratum.below:
                T.buffer_store(self.run[scan], self.begin[scan][lane], [lane])
            for scan in stratum.scans:
                T.buffer_store(self.run[scan], neutral(scan), [lane])
            for section, buffer in zip(exchange.decays(), passed, strict=True):
                T.buffer_store(buffer, tirx.const(1, section.dtype), [lane])
        with self._steps(start) as (at, _, time), T.unroll(0, width) as lane:
            held = [*stratum.below, *stratum.scans]
            values = self._values(at, time, lane, held, self.run)
            stores = [(self.run[scan], values.advance(scan)) for scan in held]
            for section, buffer in zip(exchange.decays(), passed, strict=True):
                assert section.decay is not None
                stores.append((buffer, values.passed(section.decay, section.scans[0], buffer[lane])))
            for buffer, value in stores:
                T.buffer_store(buffer, value, [lane])
        self._give(exchange, stratum, passed)
        exchange.run(self.thread, self.rows, mark)
        for scan in stratum.scans:
            with neighbours(width) as lane:
                T.buffer_store(self.begin[scan], self.rows[str(scan.dtype)][exchange.row_of(scan), self._cell(lane)], [lane])

    def _give(self, exchange: Exchange, stratum: Stratum, passed: list[Any]) -> None:
        for scan in stratum.scans:
            with neighbours(self.shape.width) as lane:
                T.buffer_store(self.rows[str(scan.dtype)], self.run[scan][lane], [exchange.row_of(scan), self._cell(lane)])
        for section, buffer in zip(exchange.decays(), passed, strict=True):
            with neighbours(self.shape.width) as lane:
                T.buffer_store(self.rows[section.dtype], buffer[lane], [section.decay_row, self._cell(lane)])

    def _last_pass(self, start: Any) -> None:
        """All states as they are: what is written at every step, and the reductions."""
        kernel, width = self.kernel, self.shape.width
        ends = [tensor for tensor in self.kept if tensor not in self.sums]
        needed = closure([*kernel.emits, *ends, *self.reductions], kernel, self.ready) if self.shape.groups > 1 else self.scans
        if self.shape.groups > 1:
            with T.unroll(0, width) as lane:
                for scan in needed:
                    T.buffer_store(self.run[scan], self.begin[scan][lane], [lane])
        part = self.part or self.sums
        for anchor, buffer in self.part.items():
            with T.unroll(0, width) as lane:
                T.buffer_store(buffer, neutral(anchor), [lane])
        near = self._near(start)
        with self._steps(start) as (at, step, time):
            exists = T.Bind(step < kernel.extent)
            with T.unroll(0, width) as lane:
                values = self._values(at, time, lane, needed, self.run)
                stores = [(self.run[scan], values.advance(scan), [lane]) for scan in needed]
                stores += [(buffer, values.at_point(e), self._slot(e, at, lane)) for e, buffer in self.out.items()]
                stores += [
                    (buffer, values.added(a, buffer[lane], None if self.muted else exists), [lane]) for a, buffer in part.items()
                ]
                latches = [(tensor, values.at_point(tensor).astype(self.kept[tensor])) for tensor in kernel.latches]
                for buffer, value, place in stores:
                    T.buffer_store(buffer, value, place)
                if ends:
                    with T.If(step == kernel.extent - 1), T.Then():
                        for tensor, value in [*((scan, self.run[scan][lane]) for scan in ends if scan in self.run), *latches]:
                            self._keep(tensor, value, lane)
            if written := self._written():
                with T.If(exists if self.fits is None else tirx.all(exists, self.fits)), T.Then():
                    for emitted in written:
                        self._write(emitted, self.out[emitted], near.get(emitted), at, time)
        self._behind(start, needed)
        for anchor, buffer in self.part.items():
            with T.unroll(0, width) as lane:
                joined = combine(stages.reduction(anchor), self.sums[anchor][lane], buffer[lane])
                T.buffer_store(self.sums[anchor], joined, [lane])

    def _slot(self, emitted: te.Tensor, at: Any, lane: Any) -> list[Any]:
        """Where a result of one step is put."""
        return [lane]

    def _written(self) -> list[te.Tensor]:
        """The results of every step that go to memory."""
        return list(self.out)

    def _behind(self, start: Any, scans: Sequence[te.Tensor]) -> None:
        """What the last pass over a group does after its last step."""

    def _near(self, start: Any) -> dict[te.Tensor, tuple[Any, int]]:
        """For every result that has neighbouring channels next to each other: its rows from this group on, and their distance."""
        if self.lane is None or self.kernel.position > self.lane:
            return {}
        first = self._time(start + (self.shape.steps - 1) if self.backwards else start)
        found = {}
        for emitted in self._written():
            stride = row_stride(emitted, self.kernel.position)
            if stride is not None:
                found[emitted] = rows(self.buffers[emitted], self._full(self.places, first)), stride
        return found

    def _write(self, emitted: te.Tensor, buffer: Any, near: tuple[Any, int] | None, at: Any, time: Any) -> None:
        width = self.shape.width
        if near is not None:
            row = self.shape.steps - 1 - at if self.backwards else at
            with neighbours(width) as lane:
                T.buffer_store(near[0], buffer[lane], [row * near[1] + lane])
            return
        with T.unroll(0, width) as lane:
            point = [*self.lead] if self.lane is None else [*self.lead, self.places[-1] + lane]
            T.buffer_store(self.buffers[emitted], buffer[lane], self._full(point, time))
