"""What a walk reads from memory: windows of the walked axis, and what is the same at every step.

A thread of a walk owns a few channels and a group of consecutive steps.  A tensor that it reads at its own steps, or a fixed
number of steps off, is loaded into registers once (a window); what does not depend on the step is loaded once for the whole
walk; anything else is read where it is used, at a place that always exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import sym, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import const_int, same_tensor
from tilegen.plan import stages
from tilegen.plan.gpu.lanes import Element, below, neighbours
from tilegen.schedules.rule import dtype_bytes

Pattern = tuple[tuple[str, int], ...]
"""One entry an index: ("point", axis of the kernel's space), ("step", distance in elements) or ("const", value)."""

STEADY_REGISTERS = 40
"""What does not change along a walk is kept in at most so many registers; more is read from the cache again and again."""

FAR = 1 << 30
"""Elements of a buffer whose end nobody asks for."""


@dataclass
class Place:
    """Where a thread is: the indices of its point with the extents of the space, its step on the walked axis with the extent of that."""

    point: Sequence[Any]
    space: Sequence[Any]
    step: Any
    extent: Any

    def ranges(self) -> list[tuple[Any, Any]]:
        """The indices of the point, each with the extent that it stays below."""
        return list(zip(self.point, self.space, strict=True))

    def pattern(self, tensor: te.Tensor, indices: Sequence[Any]) -> Pattern | None:
        """How `indices` follow the point and the step; None when they do in no simple way, or may lie outside of the tensor."""
        entries: list[tuple[str, int]] = []
        for index, extent in zip(indices, tensor.shape, strict=True):
            if below(index, extent, self.ranges()):
                known = const_int(index)
                axis = next((k for k, own in enumerate(self.point) if known is None and index.same_as(own)), 0)
                entries.append(("const", known) if known is not None else ("point", axis))
                continue
            distance = const_int(sym.Analyzer().simplify(index - self.step))
            if distance is None or not stages.equal(extent, self.extent):
                return None
            entries.append(("step", distance))
        return tuple(entries) if sum(entry[0] == "step" for entry in entries) <= 1 else None


@dataclass
class Window:
    """Elements of one tensor that a thread holds: `width` channels of the steps from `low` to `high` around its own."""

    tensor: te.Tensor
    key: Pattern
    width: int
    vector: bool
    lane: int | None = None
    low: int = 0
    high: int = 0
    now: Any = None
    ahead: Any = None

    @property
    def axis(self) -> int:
        """The walked axis of the tensor."""
        return [kind for kind, _ in self.key].index("step")

    def indices(self, places: Sequence[Any], time: Any, lane: Any) -> list[Any]:
        """The element of one channel at an index of the walked axis."""
        found = []
        for kind, value in self.key:
            if kind == "const":
                found.append(tirx.const(value, "int32"))
            elif kind == "step":
                found.append(time)
            else:
                found.append(places[value] + lane if value == self.lane else places[value])
        return found

    @property
    def moves(self) -> bool:
        """Whether it is read at the step, so that it moves along."""
        return any(kind == "step" for kind, _ in self.key)


def shape_of(found: Pattern) -> Pattern:
    """A pattern without the distance of its step: what reads with the same one share a window."""
    return tuple((kind, 0 if kind == "step" else value) for kind, value in found)


@dataclass
class Reads:
    """All windows of a walk.

    Parameters
    ----------
    lane : axis of the kernel's space along which the threads' channels lie, or None.
    width : channels of a thread.
    """

    lane: int | None
    width: int
    reverse: bool
    windows: dict[tuple[te.Tensor, Pattern], Window] = field(default_factory=dict)
    registers: int = 0
    elsewhere: set[te.Tensor] = field(default_factory=set)

    def record(self, tensor: te.Tensor, found: Pattern | None) -> None:
        """Make room for one read; what follows the step in no simple way is noted as read `elsewhere`."""
        if found is None:
            self.elsewhere.add(tensor)
            return
        key = (tensor, shape_of(found))
        lanes = [k for k, entry in enumerate(found) if entry == ("point", self.lane)]
        if key not in self.windows:
            width = self.width if lanes else 1
            last = len(found) - 1
            vector = lanes == [last] and (const_int(tensor.shape[last]) or 1) % self.width == 0
            window = Window(tensor, key[1], width, vector, self.lane)
            if not window.moves:
                cost = width * max(1, dtype_bytes(str(tensor.dtype)) // 4)
                if self.registers + cost > STEADY_REGISTERS:
                    return
                self.registers += cost
            self.windows[key] = window
        offset = self.offset(found)
        window = self.windows[key]
        window.low, window.high = min(window.low, offset), max(window.high, offset)

    def offset(self, found: Pattern) -> int:
        """Steps between the own step and the one that is read."""
        away = next((value for kind, value in found if kind == "step"), 0)
        return -away if self.reverse else away

    def follows(self, tensor: te.Tensor) -> bool:
        """Whether all reads of a tensor go through windows that move along the walk."""
        own = [window for window in self.windows.values() if same_tensor(window.tensor, tensor)]
        return bool(own) and all(window.moves for window in own) and tensor not in self.elsewhere

    def moving(self) -> list[Window]:
        """Windows that move along the walk."""
        return [window for window in self.windows.values() if window.moves]

    def steady(self) -> list[Window]:
        """What is loaded once."""
        return [window for window in self.windows.values() if not window.moves]


class Recorder(Mapping[te.Tensor, Any]):
    """Memory that notes what is read; a read gives the plain element."""

    def __init__(self, buffers: Mapping[te.Tensor, Any], reads: Reads, place: Place):
        self.buffers, self.reads, self.place = buffers, reads, place

    def __getitem__(self, tensor: te.Tensor) -> Any:
        return Element(lambda indices: self._read(tensor, indices))

    def _read(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        self.reads.record(tensor, self.place.pattern(tensor, indices))
        return self.buffers[tensor][tuple(indices)]

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.buffers

    def __iter__(self) -> Iterator[te.Tensor]:
        return iter(self.buffers)

    def __len__(self) -> int:
        return len(self.buffers)


class Held(Recorder):
    """Memory as a thread sees it at one of its steps (`at`, counted from its first) and channels (`lane`): windows first."""

    def __init__(self, buffers: Mapping[te.Tensor, Any], reads: Reads, place: Place, at: Any, lane: Any):
        super().__init__(buffers, reads, place)
        self.at, self.lane = at, lane

    def _read(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        found = self.place.pattern(tensor, indices)
        window = self.reads.windows.get((tensor, shape_of(found))) if found is not None else None
        if window is None:
            return self.buffers[tensor][
                tuple(inside(i, n, self.place.ranges()) for i, n in zip(indices, tensor.shape, strict=True))
            ]
        assert found is not None
        lane = self.lane if window.width > 1 else 0
        return window.now[self.at + (self.reads.offset(found) - window.low) if window.moves else 0, lane]


def inside(index: Any, extent: Any, ranges: Sequence[tuple[Any, Any]]) -> Any:
    """`index`, moved to the nearest element of an axis unless it is there for certain."""
    return index if below(index, extent, ranges) else tirx.max(tirx.min(index, extent - 1), 0)


def row_stride(tensor: te.Tensor, axis: int) -> int | None:
    """Elements between neighbours along an axis, if that number is static."""
    extents = [const_int(n) for n in tensor.shape[axis + 1 :]]
    return math.prod(n for n in extents if n is not None) if None not in extents else None


def rows(buffer: Any, first: Sequence[Any]) -> Any:
    """`buffer` from the element at `first` on: what is read near it needs no offset of 64 bits, and often none but a constant."""
    pointer = T.Bind(T.address_of(buffer[tuple(first)]))
    return T.decl_buffer([FAR], str(buffer.dtype), data=pointer, scope="global")


def load(
    window: Window, source: Any, target: Any, slots: int, places: Sequence[Any], at: Any, reverse: bool | None = None
) -> None:
    """Fill `slots` steps of `target`.

    Parameters
    ----------
    places : the first indices of the point.
    at : gives the index on the walked axis by slot.
    reverse : whether indices fall from slot to slot; None if they do not follow each other, as where they are held back at an end.
    """
    neighbouring = window.vector or window.width == 1
    stride = row_stride(window.tensor, window.axis) if window.moves and neighbouring and reverse is not None else None
    if stride is not None:
        near = rows(source, window.indices(places, at(slots - 1 if reverse else 0), 0))
        with T.unroll(0, slots) as slot, neighbours(window.width) as lane:
            row = slots - 1 - slot if reverse else slot
            T.buffer_store(target, near[row * stride + lane], [slot, lane])
        return
    with T.unroll(0, slots) as slot:
        moved = T.Bind(at(slot)) if window.moves else None
        with neighbours(window.width) if window.vector else T.unroll(0, window.width) as lane:
            T.buffer_store(target, source[tuple(window.indices(places, moved, lane))], [slot, lane])
