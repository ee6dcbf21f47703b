"""Which channels and steps of a walk are a thread's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import ScheduleError
from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import MathRule
from tilegen.plan.gpu.func import Buffers, name
from tilegen.plan.gpu.lanes import product, unravel
from tilegen.plan.gpu.walk_exchange import Marker, Shape
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

MOST_THREADS = 1024
"""Of a block."""


def lane_extent(kernel: Kernel) -> int | None:
    """Channels along the last axis of a walk's space, if their number is static."""
    return const_int(kernel.space[-1]) if kernel.space else None


class Placed:
    """A walk over blocks and threads.

    Parameters
    ----------
    shape : how the threads of a block share its channels and the steps of a round.
    """

    def __init__(self, kernel: Kernel, buffers: Buffers, shape: Shape, gpu: Gpu, math: MathRule):
        self.kernel, self.buffers, self.shape, self.gpu, self.math = kernel, buffers, shape, gpu, math
        self.ready = {tensor for tensor in buffers if tensor not in set(kernel.writes())}
        self.lane = len(kernel.space) - 1 if lane_extent(kernel) is not None else None
        self.backwards = kernel.reverse
        self._check()

    def _check(self) -> None:
        """Refuse sizes that do not go together."""
        shape, extent = self.shape, lane_extent(self.kernel)
        said = f"kernel '{self.kernel.name}': {shape.channels} channels, width {shape.width}, {shape.groups} groups"
        if shape.channels % shape.width or (extent if extent is not None else 1) % shape.width:
            raise ScheduleError(f"{said}; width must divide the channels of a block and of the kernel ({extent}); tune it again")
        if self.lane is None and shape.channels > 1:
            raise ScheduleError(f"{said}; a kernel without a static last axis has 1 channel; tune it again")
        if 1 < shape.groups < shape.width:
            raise ScheduleError(f"{said}; groups must be 1 or at least the width; tune it again")
        if shape.threads > MOST_THREADS:
            raise ScheduleError(f"{said} make {shape.threads} threads, must be at most {MOST_THREADS}; tune it again")

    def _grid(self) -> tuple[list[Any], Any]:
        """(extents of the axes whose points have blocks of their own, blocks in all)."""
        own = list(self.kernel.space) if self.lane is None else list(self.kernel.space[:-1])
        tiles = 1 if self.lane is None else -(-lane_extent(self.kernel) // self.shape.channels)  # type: ignore[operator]
        return own, product([*own, tiles])

    def _places(self, block: Any, thread: Any, own: list[Any]) -> None:
        """Which channels and steps are this thread's."""
        shape = self.shape
        tiles = 1 if self.lane is None else -(-lane_extent(self.kernel) // shape.channels)  # type: ignore[operator]
        self.thread = thread
        self.tx = name("tx", T.Bind(tirx.floormod(thread, shape.lanes)))
        self.group = name("group", T.Bind(tirx.floordiv(thread, shape.lanes)))
        lead = unravel(tirx.floordiv(block, tiles), own)
        if lead:
            lead[0] = lead[0].astype("int64")  # and with it every offset: tensors may have more than 2^31 elements
        self.lead = [name(f"p{k}", T.Bind(at)) for k, at in enumerate(lead)]
        self.fits: Any = None
        self.places = list(self.lead)
        if self.lane is None:
            return
        self.tile = tirx.floormod(block, tiles) * shape.channels
        first = self.tile + self.tx * shape.width
        extent = lane_extent(self.kernel)
        assert extent is not None
        if extent % shape.channels:
            # Threads beyond the last channel repeat the last ones and write nothing.
            self.fits = T.Bind(first < extent)
            first = tirx.min(first, extent - shape.width)
        self.places.append(name("first", T.Bind(first)))

    def _point(self, lane: Any) -> list[Any]:
        """The point of one of the thread's channels."""
        if self.lane is None:
            return list(self.lead)
        return [*self.lead, name("channel", T.Bind(self.places[-1] + lane))]

    def _time(self, step: Any) -> Any:
        """The index of a step on the walked axis."""
        return self.kernel.extent - 1 - step if self.backwards else step

    def _full(self, point: Sequence[Any], time: Any) -> list[Any]:
        at = self.kernel.position
        return [*point[:at], time, *point[at:]]

    def _marker(self, turn: Any) -> Marker | None:
        """Writes states at the marks of a round: ``mark(number of the scan, group before which it holds, channel of the block, value)``."""
        marks = self.kernel.marks
        if marks is None:
            return None

        def mark(number: Any, group: Any, channel: Any, value: Any) -> None:
            at, extent = turn * self.shape.span + group * self.shape.steps, lane_extent(self.kernel)
            conditions = [at < self.kernel.extent]
            if marks.every > self.shape.steps:
                conditions.append(tirx.floormod(at, marks.every) == 0)
            if extent is not None and extent % self.shape.channels:
                conditions.append(self.tile + channel < extent)
            with T.If(tirx.all(*conditions)), T.Then():
                T.buffer_store(self.buffers[marks.tensor], value, self._at_mark(number, at, channel))

        return mark

    def _at_mark(self, number: Any, step: Any, channel: Any) -> list[Any]:
        """The element of the marks of a scan before a step."""
        marks, point = self.kernel.marks, [*self.lead]
        assert marks is not None
        if self.lane is not None:
            point.append(self.tile + channel)
        return [number, *self._full(point, tirx.floordiv(step, marks.every))]

    def _cell(self, lane: Any) -> Any:
        """This thread's element in a row of sums."""
        return self.group * self.shape.channels + self.tx * self.shape.width + lane
