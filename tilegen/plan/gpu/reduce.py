"""Reductions on a GPU: `groups` of threads share the elements of a result, and join what they have in shared memory.

    block    `lanes` x `width` neighbouring results of the last axis
      thread   `width` results, every `groups`-th element that is reduced

Every thread adds up runs of `RUN` elements before it adds them to its sum, and groups are joined pairwise in a fixed order: float32
sums are nearly as accurate as pairwise ones, and the same bits come out every time.
"""

from __future__ import annotations

import math as mathematics
from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.plan.evaluate import Evaluator, MathRule, combine
from tilegen.plan.gpu.func import Buffers, Decisions, barrier, launch, name
from tilegen.plan.gpu.lanes import Element, Vectors, product, registers, unravel
from tilegen.plan.gpu.walk_values import neutral
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

RUN = 16
"""Elements that a thread adds up before it adds them to its sum."""

LOADS = 4
"""Elements whose loads are under way together."""


def lower_reduce(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a reduction; decisions: width (results of a thread), lanes (threads along the last axis), groups (threads of a result)."""
    if kernel.emits:
        raise PlanError(f"kernel '{kernel.name}': a reduction cannot write inside its loops")
    Reduction(kernel, buffers, decisions, math).emit()


class Reduction:
    """One reduction kernel being emitted."""

    def __init__(self, kernel: Kernel, buffers: Buffers, decisions: Decisions, math: MathRule):
        self.kernel, self.buffers, self.math = kernel, buffers, math
        self.width, self.lanes, self.groups = decisions["width"], decisions["lanes"], decisions["groups"]
        self.over = [axis.dom.extent for axis in stages.reduce_axes(kernel.anchors[0])]
        self.extent = const_int(kernel.space[-1]) if kernel.space else None

    @property
    def channels(self) -> int:
        """Results of a block."""
        return self.lanes * self.width

    def emit(self) -> None:
        """The kernel."""
        kernel, lanes = self.kernel, self.lanes
        own = list(kernel.space) if self.extent is None else list(kernel.space[:-1])
        tiles = 1 if self.extent is None else -(-self.extent // self.channels)
        with launch([product([*own, tiles])], lanes * self.groups) as ((block,), thread):
            self.thread = thread
            self.lane = name("lane", T.Bind(tirx.floormod(thread, lanes)))
            self.group = name("group", T.Bind(tirx.floordiv(thread, lanes)))
            self.lead = [name(f"p{k}", T.Bind(at)) for k, at in enumerate(unravel(tirx.floordiv(block, tiles), own))]
            self.first: Any = None
            self.fits: Any = None
            if self.extent is not None:
                first = tirx.floormod(block, tiles) * self.channels + self.lane * self.width
                if self.extent % self.channels:
                    self.fits = T.Bind(first < self.extent)
                    first = tirx.min(first, self.extent - self.width)
                self.first = name("first", T.Bind(first))
            self.sums = {a: registers(f"sum{k}", [self.width], str(a.dtype)) for k, a in enumerate(kernel.anchors)}
            self._accumulate()
            self._join()
            self._write()

    def _point(self, lane: int) -> list[Any]:
        if self.first is None:
            return list(self.lead)
        return [*self.lead, self.first + lane if lane else self.first]

    def _accumulate(self) -> None:
        """A thread's own elements."""
        total = product(self.over)
        step = self.groups * RUN
        part = {a: registers(f"part{k}", [self.width], str(a.dtype)) for k, a in enumerate(self.sums)}
        self._fill(self.sums)
        with T.serial(0, tirx.floordiv(total + (step - 1), step)) as turn:
            self._fill(part)
            # Neighbouring groups take neighbouring elements.
            with T.serial(0, RUN // LOADS) as bundle, T.unroll(0, LOADS) as k:
                number = T.Bind((turn * RUN + bundle * LOADS + k) * self.groups + self.group)
                # Without a branch, the loads of several elements are under way at once.
                exists = T.Bind(number < total)
                flat = name("flat", T.Bind(tirx.min(number, total - 1)))
                steps = [name(f"r{j}", T.Bind(at)) for j, at in enumerate(unravel(flat, self.over))]
                own = [*self._point(0), *steps]
                ranges = list(zip(own, [*self.kernel.space, *self.over], strict=True))
                memory = Vectors(self.buffers, self.first, self.width, ranges)
                for lane in range(self.width):
                    values = Evaluator(self.kernel, memory, self.math, self._point(lane), None, {})
                    added = [
                        (held, tirx.Select(exists, values.reduce_value(a, steps, held[lane]), held[lane]))
                        for a, held in part.items()
                    ]
                    for held, value in added:
                        T.buffer_store(held, value, [lane])
            for anchor, held in self.sums.items():
                with T.unroll(0, self.width) as lane:
                    T.buffer_store(held, combine(stages.reduction(anchor), held[lane], part[anchor][lane]), [lane])

    def _fill(self, held: dict[te.Tensor, Any]) -> None:
        for anchor, buffer in held.items():
            with T.unroll(0, self.width) as lane:
                T.buffer_store(buffer, neutral(anchor), [lane])

    def _join(self) -> None:
        """The groups' sums, two by two, in the first group's registers."""
        if self.groups == 1:
            return
        for k, (anchor, held) in enumerate(self.sums.items()):
            dtype = str(anchor.dtype)
            if k == 0 or not any(str(a.dtype) == dtype for a in list(self.sums)[:k]):
                self.shared = getattr(self, "shared", {})
                self.shared[dtype] = name(f"shared_{dtype}", T.alloc_buffer([self.groups * self.channels], dtype, scope="shared"))
            shared, kind = self.shared[dtype], stages.reduction(anchor)
            barrier()
            self._move(shared, held)
            for level in reversed(range(int(mathematics.log2(self.groups)))):
                half = 1 << level
                barrier()
                with T.If(self.group < half), T.Then(), T.unroll(0, self.width) as lane:
                    at = self._cell(lane)
                    T.buffer_store(shared, combine(kind, shared[at], shared[at + half * self.channels]), [at])
            with T.If(self.group == 0), T.Then(), T.unroll(0, self.width) as lane:
                T.buffer_store(held, shared[self._cell(lane)], [lane])

    def _cell(self, lane: Any) -> Any:
        return self.group * self.channels + self.lane * self.width + lane

    def _move(self, shared: Any, held: Any) -> None:
        with T.unroll(0, self.width) as lane:
            T.buffer_store(shared, held[lane], [self._cell(lane)])

    def _write(self) -> None:
        """The results, by the first group."""
        conditions = [*([self.group == 0] if self.groups > 1 else []), *([self.fits] if self.fits is not None else [])]
        if not conditions:
            self._results()
            return
        with T.If(tirx.all(*conditions)), T.Then():
            self._results()

    def _results(self) -> None:
        kernel = self.kernel
        for lane in range(self.width):
            point = self._point(lane)
            states = {anchor: Element(lambda _, held=held, lane=lane: held[lane]) for anchor, held in self.sums.items()}
            values = Evaluator(kernel, self.buffers, self.math, point, None, states)
            values.open_states()
            stores = [(self.buffers[final], values.at_end(final, {})) for final in kernel.finals]
            for buffer, value in stores:
                T.buffer_store(buffer, value, point)
