"""What is left of a walk: the results that have no walked axis, from the states after the last step and sums over all groups."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import ScheduleError
from tilegen.plan import stages
from tilegen.plan.access import anchors_below
from tilegen.plan.emit import wide
from tilegen.plan.evaluate import Evaluator, combine
from tilegen.plan.gpu.func import barrier, name
from tilegen.plan.gpu.lanes import Element, registers
from tilegen.plan.gpu.walk_exchange import Exchange
from tilegen.plan.gpu.walk_places import Placed
from tilegen.schedules.rule import dtype_bytes


class Ending(Placed):
    """A walk with its shared memory: rows of the groups' sums, and a row of the block's channels for all that outlives the walk."""

    exchanges: list[Exchange]
    reductions: list[te.Tensor]
    sums: dict[te.Tensor, Any]

    def _shared(self) -> None:
        """Rows of sums, one buffer a dtype, and rows of what the results behind the walk need."""
        shape = self.shape
        rows: dict[str, int] = {}
        for exchange in self.exchanges:
            for dtype, count in exchange.rows.items():
                rows[dtype] = max(rows.get(dtype, 0), count)
        if shape.groups > 1:
            for anchor in self.reductions:
                rows.setdefault(str(anchor.dtype), 1)
        self.kept = self._kept()
        ends: dict[str, int] = {}
        self.end_row: dict[te.Tensor, int] = {}
        for tensor, dtype in self.kept.items():
            self.end_row[tensor] = ends.get(dtype, 0)
            ends[dtype] = self.end_row[tensor] + 1
        wanted = [(("rows", d), [n, shape.row], d) for d, n in rows.items()] + [
            (("ends", d), [n, shape.channels], d) for d, n in ends.items()
        ]
        wanted.sort(key=lambda want: -dtype_bytes(want[2]))
        total = sum(n * width * dtype_bytes(dtype) for _, (n, width), dtype in wanted)
        self.rows: dict[str, Any] = {}
        self.ends: dict[str, Any] = {}
        if total > self.gpu.shared_bytes:
            raise ScheduleError(
                f"kernel '{self.kernel.name}': {shape.groups} groups of {shape.channels} channels take {total} bytes of shared memory, "
                f"must be at most {self.gpu.shared_bytes}; tune it again"
            )
        if not total:
            return
        base = name("shared", T.alloc_buffer([total], "uint8", scope="shared.dyn"))
        at = 0
        for (role, dtype), (n, width), _ in wanted:
            size = dtype_bytes(dtype)
            declared = T.decl_buffer([n, width], dtype, data=base.data, elem_offset=at // size, scope="shared.dyn")
            getattr(self, role)[dtype] = name(f"{role}_{dtype}", declared)
            at += n * width * size

    def _kept(self) -> dict[te.Tensor, str]:
        """What the results behind the walk need of it, with the dtype in which it waits."""
        if not self.kernel.finals:
            return {}
        own = set(self.kernel.anchors)
        needed: dict[te.Tensor, str] = {}
        for final in self.kernel.finals:
            for anchor in [final] if final in own else anchors_below(final, self.ready):
                if anchor in own:
                    needed[anchor] = str(anchor.dtype)
        return needed | {tensor: wide(tensor) for tensor in self.kernel.latches if tensor not in needed}

    def _keep(self, tensor: te.Tensor, value: Any, lane: Any) -> None:
        T.buffer_store(self.ends[self.kept[tensor]], value, [self.end_row[tensor], self.tx * self.shape.width + lane])

    def _finish(self) -> None:
        """Join the groups' reductions, and write the results that have no walked axis."""
        kernel, shape = self.kernel, self.shape
        if not kernel.finals:
            return
        for anchor, buffer in self.sums.items():
            if anchor in self.kept:
                self._join(anchor, buffer)
        barrier()
        condition = self.group == 0
        with T.If(condition if self.fits is None else tirx.all(condition, self.fits)), T.Then(), T.unroll(0, shape.width) as lane:
            point = self._point(lane)
            ends = {tensor: self._end(tensor, self.tx * shape.width + lane) for tensor in self.kept}
            values = Evaluator(kernel, self.buffers, self.math, point, None, {a: ends[a] for a in kernel.anchors if a in ends})
            values.open_states()
            stores = [
                (self.buffers[final], values.at_end(final, {t: ends[t] for t in kernel.latches})) for final in kernel.finals
            ]
            for buffer, value in stores:
                T.buffer_store(buffer, value, point)

    def _join(self, anchor: te.Tensor, buffer: Any) -> None:
        """One reduction over all groups, a thread a channel, in a fixed order."""
        shape = self.shape
        if shape.groups == 1:
            with T.unroll(0, shape.width) as lane:
                self._keep(anchor, buffer[lane], lane)
            return
        rows, kind = self.rows[str(anchor.dtype)], stages.reduction(anchor)
        barrier()
        with T.unroll(0, shape.width) as lane:
            T.buffer_store(rows, buffer[lane], [0, self._cell(lane)])
        barrier()
        with T.If(self.thread < shape.channels), T.Then():
            whole = registers("whole", [1], str(anchor.dtype))
            T.buffer_store(whole, rows[0, self.thread], [0])
            with T.unroll(1, shape.groups) as group:
                T.buffer_store(whole, combine(kind, whole[0], rows[0, group * shape.channels + self.thread]), [0])
            T.buffer_store(self.ends[self.kept[anchor]], whole[0], [self.end_row[anchor], self.thread])

    def _end(self, tensor: te.Tensor, channel: Any) -> Element:
        """A kept value, whatever it is indexed with."""
        return Element(lambda _: self.ends[self.kept[tensor]][self.end_row[tensor], channel])
