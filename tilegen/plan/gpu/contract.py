"""Contractions of two tiles into registers: on tensor cores (mma.sync m16n8k16, PTX ISA), or thread by thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.plan.gpu.func import WARP
from tilegen.plan.gpu.layout import PAD, Layout, padded
from tilegen.plan.gpu.shared import Shared

PTX = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class InShared:
    """An operand in shared memory; `turned` when its first axis is the contracted one, `paired`: see `tilegen.plan.gpu.tf32`."""

    shared: Shared
    turned: bool
    paired: bool = False


@dataclass(frozen=True)
class InRegisters:
    """A left operand that the same threads hold as the result of an earlier contraction: its blocks are those of the operand."""

    buffer: Any
    layout: Layout


@dataclass
class Fragments:
    """Operands as the tensor cores take them, kept in registers from one contraction to others that take the same.

    Parameters
    ----------
    wanted : how many contractions of a step take each; only those that several take are kept.
    held : what is in registers now.
    """

    wanted: dict[Any, int]
    held: dict[Any, Any] = field(default_factory=dict)

    def forget(self, written: Sequence[Shared]) -> None:
        """Shared memory that is overwritten is loaded again."""
        self.held = {key: buffer for key, buffer in self.held.items() if key[0] not in written}


def fragment_key(layout: Layout, side: InShared, tall: bool) -> Any:
    """What two loads of an operand have in common if every thread gets the same from both; None if a part may be left out."""
    if tall:
        return side.shared, side.turned, side.paired, tall, layout.down, layout.dims[0]
    if layout.extents[1] > padded(layout.columns):
        return None
    return side.shared, side.turned, side.paired, tall, layout.down if layout.across > 1 else 0, layout.dims[1]


def on_tensor_cores(
    layout: Layout,
    left: InShared | InRegisters,
    right: InShared,
    into: Any,
    steps: int,
    dtype: str,
    thread: Any,
    fragments: Fragments,
) -> None:
    """``into += left right`` over `steps` contracted elements, padding included zeros in both operands."""
    blocks, columns, _, _ = layout.dims
    lane, count, begin = tirx.truncmod(thread, WARP), padded(steps) // PAD, tirx.const(0, "int32")
    if isinstance(left, InRegisters) and left.layout.slant is not None:
        # Outside its band the left operand is zero.
        count, begin = left.layout.slant[1] // PAD, left.layout.first_column(thread)
    a, load_a, all_a = operand(layout, left, True, blocks * 8, count, dtype, fragments)
    b, load_b, all_b = operand(layout, right, False, columns * 4, count, dtype, fragments)
    with T.unroll(0, count) as k:
        first_a, first_b = (k * blocks * 8 if all_a else 0), (k * columns * 4 if all_b else None)
        for block in range(blocks if load_a else 0):
            if isinstance(left, InRegisters):
                first = (block * left.layout.dims[1] + 2 * k) * 4
                for pair in range(0, 8, 2):
                    with T.vectorized(0, 2) as v:
                        T.buffer_store(a, left.buffer[(first + pair + v,)].astype(dtype), [block * 8 + pair + v])
            else:
                row = layout.first_row(thread) + block * PAD
                _ldmatrix(a, first_a + block * 8, left, row, k * PAD, lane, dtype, tall=True)
        with T.unroll(0, columns // 2) as n, inside(layout, layout.first_column(thread) + n * PAD):
            at_b = 0 if first_b is None else first_b + n * 8
            if load_b:
                _ldmatrix(b, at_b, right, layout.first_column(thread) + n * PAD, begin + k * PAD, lane, dtype, tall=False)
            for block in range(blocks):
                for half in range(2):
                    at = ((block * columns) + 2 * n + half) * 4
                    T.evaluate(
                        T.ptx_legacy.mma(
                            "m16n8k16", "row", "col", PTX[dtype], PTX[dtype], "fp32",
                            a.data, first_a + block * 8, b.data, at_b + half * 4, into.data, at, False, dtype="float32",
                        )
                    )  # fmt: skip


def operand(
    layout: Layout, side: InShared | InRegisters, tall: bool, size: int, count: int, dtype: str, fragments: Fragments
) -> tuple[Any, bool, bool]:
    """Registers for an operand, `size` of each of `count` steps: (array, whether it is still to load, whether it has all steps)."""
    key = fragment_key(layout, side, tall) if isinstance(side, InShared) else None
    if key is not None and key in fragments.held:
        return fragments.held[key], False, True
    keep = fragments.wanted.get(key, 0) > 1
    buffer = T.alloc_buffer([size * count if keep else size if tall else 8], dtype, scope="local")
    IRBuilder.name("left" if tall else "right", buffer)
    if keep:
        fragments.held[key] = buffer
    return buffer, True, keep


@contextmanager
def inside(layout: Layout, column: Any) -> Iterator[None]:
    """Nothing for warps whose columns are all padding; the condition is the same for a whole warp."""
    with ExitStack() as stack:
        if layout.extents[1] > padded(layout.columns):
            stack.enter_context(T.If(column < padded(layout.columns)))
            stack.enter_context(T.Then())
        yield


def _ldmatrix(target: Any, at: int, side: InShared, free: Any, step: Any, lane: Any, dtype: str, tall: bool) -> None:
    """Four 8 x 8 matrices: 16 elements of the free axis from `free`, 16 of the contracted one from `step`.

    A left operand (`tall`) has its matrices in the order (free 0, step 0), (free 8, step 0), (free 0, step 8), (free 8, step 8);
    a right one in (free 0, step 0), (free 0, step 8), (free 8, step 0), (free 8, step 8).  Memory whose rows are the contracted
    axis is transposed on the way.
    """
    matrix, row = tirx.truncdiv(lane, 8), tirx.truncmod(lane, 8)
    low, high = tirx.truncmod(matrix, 2) * 8, tirx.truncdiv(matrix, 2) * 8
    free_part, step_part = (low, high) if tall else (high, low)
    if side.turned:
        where = [step + step_part + row, free + free_part]
    else:
        where = [free + free_part + row, step + step_part]
    pointer = side.shared.buffer.access_ptr("r", offset=side.shared.flat(where))
    T.evaluate(T.ptx_legacy.ldmatrix(side.turned, 4, ".b16", target.data, at, pointer, 0, dtype=dtype))


def on_threads(layout: Layout, left: InShared, right: InShared, into: Any, steps: int, dtype: str, thread: Any) -> None:
    """The same in `dtype` without tensor cores: a thread keeps its rows and columns of one step in registers."""
    m, n, r, c = layout.dims
    zero = tirx.const(0, "int32")
    a = T.alloc_buffer([m * r], dtype, scope="local")
    b = T.alloc_buffer([n * c], dtype, scope="local")
    with T.serial(0, steps) as k:
        with T.unroll(0, m) as i, T.unroll(0, r) as p:
            row = layout.place(thread, (i, zero, p, zero))[0]
            T.buffer_store(a, _at(left, row, layout.extents[0], k, dtype), [i * r + p])
        with T.unroll(0, n) as j, T.unroll(0, c) as q:
            column = layout.place(thread, (zero, j, zero, q))[1]
            T.buffer_store(b, _at(right, column, layout.extents[1], k, dtype), [j * c + q])
        with T.unroll(0, m) as i, T.unroll(0, n) as j, T.unroll(0, r) as p, T.unroll(0, c) as q:
            at = layout.register((i, j, p, q))
            T.buffer_store(into, into[(at,)] + a[(i * r + p,)] * b[(j * c + q,)], [at])


def _at(side: InShared, free: Any, extent: int, step: Any, dtype: str) -> Any:
    """An element of an operand; a layout of a larger `extent` reads the last row instead of those beyond."""
    rows = side.shared.shape[1 if side.turned else 0]
    free = tirx.min(free, rows - 1) if extent > rows else free
    value = side.shared.buffer[(side.shared.flat([step, free] if side.turned else [free, step]),)]
    return value if side.shared.dtype == dtype else value.astype(dtype)
