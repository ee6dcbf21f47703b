"""Shared memory of one block: one array of bytes, buffers placed in it by when they are live, and barriers where they are due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.plan.gpu.func import barrier
from tilegen.schedules.rule import dtype_bytes

ALIGN = 128
"""Bytes."""


@dataclass(eq=False)
class Shared:
    """A buffer in shared memory, live from nest `first` to nest `last`.

    Parameters
    ----------
    shape : with padding; the rows of a matrix are `stride` elements apart, which spreads them over the banks.
    spread : whether threads that take elements of a column shall find them in different banks, whatever the dtype.
    tf32 : whether what is written is rounded to TF32 (a buffer that nobody but tensor cores reads).
    shift : elements by which this step's copy lies behind the first, where steps take turns (see `Arena.copies`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    first: int
    last: int
    offset: int = 0
    buffer: Any = None
    shift: Any = 0
    spread: bool = False
    tf32: bool = False

    @property
    def stride(self) -> int:
        """Elements between rows: an odd number of 16-byte groups for narrow matrices, and where rows are to be spread."""
        if len(self.shape) < 2:
            return 1
        row, width = self.shape[-1], dtype_bytes(self.dtype)
        if width != 2 and not self.spread:
            return row
        groups = -(-row // (16 // width))
        return 16 // width * (groups + 1 - groups % 2)

    @property
    def nbytes(self) -> int:
        """Bytes, rounded up to the alignment."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        count = rows * self.stride if len(self.shape) > 1 else (self.shape[0] if self.shape else 1)
        return -(-count * dtype_bytes(self.dtype) // ALIGN) * ALIGN

    def overlaps(self, other: Shared) -> bool:
        """Whether the two share bytes."""
        return self.offset < other.offset + other.nbytes and other.offset < self.offset + self.nbytes

    def flat(self, indices: Sequence[Any]) -> Any:
        """The element number of `indices`."""
        if len(self.shape) < 2:
            return (indices[0] if self.shape else tirx.const(0, "int32")) + self.shift
        row: Any = 0
        for n, i in zip(self.shape[:-1], indices[:-1], strict=True):
            row = row * n + i
        return row * self.stride + indices[-1] + self.shift


def place(buffers: Sequence[Shared]) -> int:
    """Give every buffer its offset, so that no two that are live together share bytes; the bytes needed in all."""
    done: list[Shared] = []
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.first)):
        live = sorted((b for b in done if b.first <= buffer.last and buffer.first <= b.last), key=lambda b: b.offset)
        at = 0
        for other in live:
            if at + buffer.nbytes <= other.offset:
                break
            at = max(at, other.offset + other.nbytes)
        buffer.offset = at
        done.append(buffer)
    return max((b.offset + b.nbytes for b in buffers), default=0)


def divide(homes: Sequence[Shared], limit: int) -> tuple[list[Shared], list[Shared]]:
    """Buffers in those that stay in shared memory of `limit` bytes and those that go elsewhere, the largest first; all placed."""
    near, far = list(homes), list[Shared]()
    while place(near) > limit:
        far.append(max(near, key=lambda home: home.nbytes))
        near.remove(far[-1])
    place(far)
    return near, far


@dataclass
class Arena:
    """The shared memory of the kernel being emitted.

    Parameters
    ----------
    nbytes : of all buffers of a step.
    copies : 2 or more where steps of a walk take turns in as many, so that none waits for the reads of the one before, else 1.
    met : barriers so far.
    """

    nbytes: int
    copies: int = 1
    met: int = 0
    base: Any = None
    written: list[Shared] = field(default_factory=list)
    read: list[Shared] = field(default_factory=list)
    buffers: list[Shared] = field(default_factory=list)
    on_write: Callable[[Sequence[Shared]], None] = lambda _: None  # told of everything that is overwritten

    def open(self, buffers: Sequence[Shared]) -> None:
        """Declare the array and the buffers in it."""
        if not buffers:
            return
        self.buffers = list(buffers)
        self.base = T.alloc_buffer([self.nbytes * self.copies], "uint8", scope="shared.dyn")
        IRBuilder.name("shared", self.base)
        for shared in buffers:
            width = dtype_bytes(shared.dtype)
            shared.buffer = T.decl_buffer(
                [(shared.nbytes + self.nbytes * (self.copies - 1)) // width],
                shared.dtype,
                data=self.base.data,
                elem_offset=shared.offset // width,
                scope="shared.dyn",
            )
            IRBuilder.name(shared.name, shared.buffer)

    def turn(self, step: Any) -> None:
        """Go to the copy whose turn it is at a `step` of the walk."""
        self._shift(step)
        self.met = 0

    @contextmanager
    def ahead(self, step: Any) -> Iterator[None]:
        """Write to the copy whose turn it is at another `step`."""
        shifts = [shared.shift for shared in self.buffers]
        self._shift(step)
        yield
        for shared, shift in zip(self.buffers, shifts, strict=True):
            shared.shift = shift

    def _shift(self, step: Any) -> None:
        if self.copies > 1 and self.buffers:
            turn = T.Bind(tirx.truncmod(step, self.copies))
            IRBuilder.name("turn", turn)
            for shared in self.buffers:
                shared.shift = turn * (self.nbytes // dtype_bytes(shared.dtype))

    def close(self) -> None:
        """The end of a step: its accesses are over before those of the next to the same copy."""
        # With several copies the next step uses another one, and its barrier is between this step and the one after.
        if self.copies == 1 or not self.met:
            self.settle()

    def use(self, reads: Sequence[Shared], writes: Sequence[Shared]) -> None:
        """Say what the next nest reads and writes; emits a barrier if it must wait for the nests before."""
        late = any(r.overlaps(w) for r in reads for w in self.written) or any(
            w.overlaps(other) for w in writes for other in [*self.written, *self.read]
        )
        if late:
            self.meet()
        self.on_write(writes)
        self.read += [r for r in reads if r not in self.read]
        self.written += [w for w in writes if w not in self.written]

    def meet(self) -> None:
        """A barrier."""
        barrier()
        self.met += 1
        self.read, self.written = [], []

    def settle(self) -> None:
        """A barrier unless nothing happened since the last one."""
        if self.read or self.written:
            self.meet()
