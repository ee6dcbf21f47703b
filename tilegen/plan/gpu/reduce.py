"""Reductions on a GPU: `groups` of threads share the elements of a result, and join what they have in shared memory.

    block    `lanes` x `width` neighbouring results of the last axis, `strip` of the axis before it
      thread   `width` x `strip` results, every `groups`-th element that is reduced

What several results of a strip read, as a convolution does, is loaded once for all of them.
Every thread adds up runs of `RUN` elements before it adds them to its sum, and groups are joined pairwise in a fixed order: float32
sums are nearly as accurate as pairwise ones, and the same bits come out every time.
"""

from __future__ import annotations

import math as mathematics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.plan.evaluate import Evaluator, MathRule, combine
from tilegen.plan.gpu.func import WARP, Buffers, Decisions, barrier, launch, name
from tilegen.plan.gpu.lanes import Element, Vectors, product, registers, unravel
from tilegen.plan.gpu.toeplitz import Toeplitz
from tilegen.plan.gpu.walk_values import neutral
from tilegen.plan.keep import keep
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

RUN = 16
"""Elements that a thread adds up before it adds them to its sum."""

LOADS = 4
"""Elements whose loads are under way together."""


def lower_reduce(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a reduction; decisions: width and strip (results of a thread), lanes (threads along the last axis), groups (threads
    of a result); or those of a convolution."""
    if kernel.emits:
        raise PlanError(f"kernel '{kernel.name}': a reduction cannot write inside its loops")
    if "span" in decisions:
        Toeplitz(kernel, buffers, decisions, gpu, math).emit()
    else:
        Reduction(kernel, buffers, decisions, math).emit()


class Reduction:
    """One reduction kernel being emitted."""

    def __init__(self, kernel: Kernel, buffers: Buffers, decisions: Decisions, math: MathRule):
        self.kernel, self.buffers, self.math = kernel, buffers, math
        self.width, self.lanes, self.groups = decisions["width"], decisions["lanes"], decisions["groups"]
        self.strip = decisions["strip"]
        self.over = [kernel.extent] if kernel.pattern == "walk" else [a.dom.extent for a in stages.reduce_axes(kernel.anchors[0])]
        self.extent = const_int(kernel.space[-1]) if kernel.space else None
        self.shared: dict[str, Any] = {}
        self.part: Any = None
        self.parts = 1

    @property
    def channels(self) -> int:
        """Neighbouring results of a block."""
        return self.lanes * self.width

    def emit(self) -> None:
        """The kernel, or one for the parts of all sums and one that adds them up."""
        if self.kernel.partial is None:
            self._launch(1, self._accumulate, self._write)
            return
        self._launch(const_int(self.kernel.partial.shape[0]) or 1, self._accumulate, self._leave)
        self.groups, self.lanes, self.strip = 1, WARP, 1
        self._launch(1, self._gather, self._write)

    def _launch(self, parts: int, add: Callable[[], None], write: Callable[[], None]) -> None:
        """One kernel: sums are added by `add`, joined, and written by `write`, in `parts` blocks."""
        kernel, lanes, strip = self.kernel, self.lanes, self.strip
        own = list(kernel.space) if self.extent is None else list(kernel.space[:-1])
        if strip > 1:
            own[-1] = tirx.floordiv(own[-1] + (strip - 1), strip)
        tiles = 1 if self.extent is None else -(-self.extent // self.channels)
        with launch([product([*own, tiles, parts])], lanes * self.groups) as ((block,), thread):
            self.thread, self.parts = thread, parts
            # Neighbouring blocks share rows of memory: parts come last.
            self.part = name("part", T.Bind(tirx.floordiv(block, product([*own, tiles])))) if parts > 1 else None
            block = name("tile", T.Bind(tirx.floormod(block, product([*own, tiles])))) if parts > 1 else block
            self.lane = name("lane", T.Bind(tirx.floormod(thread, lanes)))
            self.group = name("group", T.Bind(tirx.floordiv(thread, lanes)))
            lead = unravel(tirx.floordiv(block, tiles), own)
            if strip > 1:
                lead[-1] = lead[-1] * strip
            if len(lead) > 1:
                lead[0] = lead[0].astype("int64")  # and with it every offset: tensors may have more than 2^31 elements
            self.lead = [name(f"p{k}", T.Bind(keep(at))) for k, at in enumerate(lead)]
            self.first: Any = None
            self.fits: Any = None
            if self.extent is not None:
                first = tirx.floormod(block, tiles) * self.channels + self.lane * self.width
                if self.extent % self.channels:
                    self.fits = T.Bind(first < self.extent)
                    first = tirx.min(first, self.extent - self.width)
                self.first = name("first", T.Bind(first))
            self.sums = self._registers("sum")
            add()
            self._join()
            write()

    def _registers(self, label: str) -> dict[te.Tensor, Any]:
        shape = [self.strip, self.width]
        return {a: registers(f"{label}{k}", shape, str(a.dtype)) for k, a in enumerate(self.kernel.anchors)}

    def _point(self, row: int, lane: int) -> list[Any]:
        lead = [*self.lead[:-1], self.lead[-1] + row] if row else list(self.lead)
        return lead if self.first is None else [*lead, self.first + lane if lane else self.first]

    def _accumulate(self) -> None:
        """A thread's own elements."""
        total, before = product(self.over), 0
        step = self.groups * RUN
        part = self._registers("part")
        self._fill(self.sums)
        turns = tirx.floordiv(total + (step - 1), step)
        if self.part is not None:
            turns = tirx.floordiv(turns + (self.parts - 1), self.parts)
            before = name("before", T.Bind(self.part * turns))
        with T.serial(0, turns) as round_:
            turn = before + round_ if self.part is not None else round_
            self._fill(part)
            with T.serial(0, RUN // LOADS) as bundle:
                # Neighbouring groups take neighbouring elements.  Opaque to the simplifier, so that equal conditions stay equal.
                number = name("number", T.Bind(keep((turn * RUN + bundle * LOADS) * self.groups + self.group)))
                last = (LOADS - 1) * self.groups
                with T.If(number + last < total), T.Then():
                    self._elements(number, None, part)
                # Said in other words, not as the other branch: nvcc would join the two.
                with T.If(total - number <= last), T.Then():
                    self._elements(number, total, part)
            for anchor, held in self.sums.items():
                with T.unroll(0, self.strip) as row, T.unroll(0, self.width) as lane:
                    joined = combine(stages.reduction(anchor), held[row, lane], part[anchor][row, lane])
                    T.buffer_store(held, joined, [row, lane])

    def _ranges(self) -> list[tuple[Any, Any]]:
        """The variables that are certainly indices; a strip may reach beyond its axis, and the last elements beyond theirs."""
        ranges = list(zip(self._point(0, 0), self.kernel.space, strict=True))
        return [pair for pair in ranges if self.strip == 1 or pair[0] is not self.lead[-1]]

    def _elements(self, first: Any, total: Any, part: dict[te.Tensor, Any]) -> None:
        """Add `LOADS` elements to every result of the thread, those below `total` if it is given; their loads are under way at once."""
        memory = Vectors(self.buffers, self.first, self.width, self._ranges())
        for load in range(LOADS):
            number = first + load * self.groups if load else first
            exists = T.Bind(number < total) if total is not None else None
            steps = [number] if len(self.over) == 1 else [T.Bind(keep(at)) for at in unravel(number, self.over)]
            for row in range(self.strip):
                for lane in range(self.width):
                    values = Evaluator(self.kernel, memory, self.math, self._point(row, lane), None, {})
                    added = [(held, values.reduce_value(a, steps, held[row, lane]), held[row, lane]) for a, held in part.items()]
                    for held, value, before in added:
                        T.buffer_store(held, value if exists is None else tirx.Select(exists, value, before), [row, lane])

    def _fill(self, held: dict[te.Tensor, Any]) -> None:
        for anchor, buffer in held.items():
            with T.unroll(0, self.strip) as row, T.unroll(0, self.width) as lane:
                T.buffer_store(buffer, neutral(anchor), [row, lane])

    def _join(self) -> None:
        """The groups' sums, two by two, in the first group's registers."""
        if self.groups == 1:
            return
        for dtype in dict.fromkeys(str(anchor.dtype) for anchor in self.sums):
            self.shared[dtype] = name(f"shared_{dtype}", T.alloc_buffer([self.groups * self.channels], dtype, scope="shared"))
        for anchor, held in self.sums.items():
            for row in range(self.strip):
                self._join_row(self.shared[str(anchor.dtype)], held, row, stages.reduction(anchor))

    def _join_row(self, shared: Any, held: Any, row: int, kind: str) -> None:
        barrier()
        with T.unroll(0, self.width) as lane:
            T.buffer_store(shared, held[row, lane], [self._cell(lane)])
        for level in reversed(range(int(mathematics.log2(self.groups)))):
            half = 1 << level
            barrier()
            with T.If(self.group < half), T.Then(), T.unroll(0, self.width) as lane:
                at = self._cell(lane)
                T.buffer_store(shared, combine(kind, shared[at], shared[at + half * self.channels]), [at])
        with T.If(self.group == 0), T.Then(), T.unroll(0, self.width) as lane:
            T.buffer_store(held, shared[self._cell(lane)], [row, lane])

    def _cell(self, lane: Any) -> Any:
        return self.group * self.channels + self.lane * self.width + lane

    def _gather(self) -> None:
        """The parts of all sums, one after the other."""
        kernel = self.kernel
        assert kernel.partial is not None
        self._fill(self.sums)
        with T.unroll(0, const_int(kernel.partial.shape[0]) or 1) as part:
            for lane in range(self.width):
                for k, (anchor, held) in enumerate(self.sums.items()):
                    value = self.buffers[kernel.partial][(part, k, *self._point(0, lane))]
                    T.buffer_store(held, combine(stages.reduction(anchor), held[0, lane], value), [0, lane])

    def _leave(self) -> None:
        """The sums of a part, by the first group."""
        self._write(lambda row, lane: self._partial(row, lane))

    def _partial(self, row: int, lane: int) -> None:
        target = self.buffers[self.kernel.partial]
        for k, held in enumerate(self.sums.values()):
            T.buffer_store(target, held[row, lane], [self.part, k, *self._point(row, lane)])

    def _write(self, one: Callable[[int, int], None] | None = None) -> None:
        """The results, by the first group."""
        one = one or self._results
        conditions = [*([self.group == 0] if self.groups > 1 else []), *([self.fits] if self.fits is not None else [])]
        for row in range(self.strip):
            inside = [self._point(row, 0)[len(self.lead) - 1] < self.kernel.space[len(self.lead) - 1]] if self.strip > 1 else []
            with ExitStack() as stack:
                if conditions or inside:
                    stack.enter_context(T.If(tirx.all(*conditions, *inside)))
                    stack.enter_context(T.Then())
                for lane in range(self.width):
                    one(row, lane)

    def _results(self, row: int, lane: int) -> None:
        kernel, point = self.kernel, self._point(row, lane)
        states = {anchor: Element(lambda _, held=held: held[row, lane]) for anchor, held in self.sums.items()}
        values = Evaluator(kernel, self.buffers, self.math, point, None, states)
        values.open_states()
        stores = [(self.buffers[final], values.at_end(final, {})) for final in kernel.finals]
        for buffer, value in stores:
            T.buffer_store(buffer, value, point)
