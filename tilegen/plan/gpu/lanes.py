"""Reads of a thread that owns neighbouring elements along the last axis: one wide load each, kept in registers.

All reads are moved inside the tensor, so that they need no branch: what a guard would have kept from being read is read
somewhere else and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvm import ir, sym, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import const_int, same, same_tensor, variables
from tilegen.plan import stages
from tilegen.plan.gpu.func import name
from tilegen.schedules.rule import dtype_bytes

WIDEST = 16
"""Bytes of the widest load of a thread."""


def registers(label: str, shape: Sequence[int], dtype: str) -> Any:
    """An array that lives in registers."""
    return name(label, T.alloc_buffer(list(shape), dtype, scope="local"))


def neighbours(count: int) -> Any:
    """A loop over elements that lie next to each other: one access."""
    return T.vectorized(0, count) if count > 1 else T.unroll(0, count)


def pieces(width: int, dtype: str) -> list[tuple[int, int]]:
    """(first element, elements) of the accesses that move `width` elements."""
    step = min(width, WIDEST // dtype_bytes(dtype))
    return [(at, step) for at in range(0, width, step)]


class Vectors(Mapping[te.Tensor, Any]):
    """Memory as a thread sees it that owns `width` elements from `first` on along the last axis.

    Parameters
    ----------
    first : None where all threads have the same element: of one result, or of results along other axes than the threads'.
    ranges : the loops' own variables, each with the extent that it stays below; `first` is among them.
    """

    def __init__(self, buffers: Mapping[te.Tensor, Any], first: Any, width: int, ranges: Sequence[tuple[Any, Any]]):
        self.buffers, self.first, self.width, self.ranges = buffers, first, width, list(ranges)
        self.loaded: list[tuple[te.Tensor, list[Any], Any]] = []

    def __getitem__(self, tensor: te.Tensor) -> Any:
        return Element(lambda indices: self._read(tensor, indices))

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.buffers

    def __iter__(self) -> Iterator[te.Tensor]:
        return iter(self.buffers)

    def __len__(self) -> int:
        return len(self.buffers)

    def _read(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        indices = [simplified(index) for index in indices]
        *rest, last = indices
        offset = self._offset(last)
        whole = (const_int(tensor.shape[-1]) or 1) % self.width == 0
        if self.width > 1 and offset is not None and whole and not any(self._varies(i) for i in rest):
            return self._load(tensor, [*rest, self.first], self.width)[offset]
        if self.width > 1 and any(self._varies(i) for i in indices):
            return self.buffers[tensor][tuple(self._within(i, n) for i, n in zip(indices, tensor.shape, strict=True))]
        return self._load(tensor, list(indices), 1)[0]

    def _offset(self, index: Any) -> int | None:
        """How far `index` lies behind the thread's first element, if it is one of its own."""
        if self.first is None or const_int(index) is not None:
            return None
        known = 0 if index is self.first else const_int(sym.Analyzer().simplify(index - self.first))
        return known if known is not None and 0 <= known < self.width else None

    def _varies(self, index: Any) -> bool:
        return self.first is not None and not isinstance(index, int) and any(v.same_as(self.first) for v in variables(index))

    def _within(self, index: Any, extent: Any) -> Any:
        """`index`, moved to the nearest element of its axis unless it is there for certain."""
        base = self.first if self._offset(index) is not None else index
        return index if below(base, extent, self.ranges) else tirx.max(tirx.min(index, extent - 1), 0)

    def _load(self, tensor: te.Tensor, indices: list[Any], width: int) -> Any:
        for known, at, held in self.loaded:
            whole = same_tensor(known, tensor) and const_int(held.shape[0]) == width
            if whole and all(same(_expr(a), _expr(b)) for a, b in zip(at, indices, strict=True)):
                return held
        dtype = str(tensor.dtype)
        held = registers("loaded", [width], dtype)
        at = [self._within(i, n) for i, n in zip(indices, tensor.shape, strict=True)]
        if width == 1:
            T.buffer_store(held, self.buffers[tensor][tuple(at)], [0])
        else:
            end = tensor.shape[-1]
            first = self.first if below(self.first, end, self.ranges) else tirx.min(self.first, end - width)
            for start, count in pieces(width, dtype):
                with neighbours(count) as lane:
                    T.buffer_store(held, self.buffers[tensor][(*at[:-1], first + (lane + start))], [lane + start])
        self.loaded.append((tensor, list(indices), held))
        return held


def simplified(index: Any) -> Any:
    """`index` in a form in which equal ones look equal."""
    return index if const_int(index) is not None or isinstance(index, ir.Var) else sym.Analyzer().simplify(index)


def below(index: Any, extent: Any, ranges: Sequence[tuple[Any, Any]]) -> bool:
    """Whether `index` is certainly an element of an axis: a constant, or one of the variables of `ranges`, each below its extent."""
    known, size = const_int(index), const_int(extent)
    if known is not None:
        return known == 0 or (size is not None and 0 <= known < size)
    most = next((n for own, n in ranges if isinstance(index, ir.Var) and index.same_as(own)), None)
    if most is None:
        return False
    return stages.equal(most, extent) or (size is not None and const_int(most) is not None and const_int(most) <= size)  # type: ignore[operator]


class Element:
    """Something that is indexed like a buffer."""

    def __init__(self, read: Any):
        self.read = read

    def __getitem__(self, indices: Any) -> Any:
        return self.read(list(indices) if isinstance(indices, tuple) else [indices])


def store(target: Any, held: Any, lead: Sequence[Any], first: Any, width: int) -> None:
    """Write `width` neighbouring elements, `held` in registers."""
    dtype = str(target.dtype)
    if width == 1:
        T.buffer_store(target, held[0], [*lead, first] if first is not None else list(lead))
        return
    for start, count in pieces(width, dtype):
        with neighbours(count) as lane:
            T.buffer_store(target, held[lane + start], [*lead, first + (lane + start)])


def unravel(flat: Any, extents: Sequence[Any]) -> list[Any]:
    """The indices of element `flat`, which is not negative, of a row-major space."""
    found: list[Any] = []
    for extent in reversed(extents[1:]):
        found.insert(0, tirx.truncmod(flat, extent))
        flat = tirx.truncdiv(flat, extent)
    return [flat, *found] if extents else found


def product(extents: Sequence[Any]) -> Any:
    """The number of elements of a space, at least as an int32 constant."""
    total: Any = tirx.const(1, "int32")
    for extent in extents:
        total = total * extent
    return total


def _expr(index: Any) -> Any:
    return tirx.const(index, "int32") if isinstance(index, int) else index
