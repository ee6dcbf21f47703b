"""Contractions of two tiles into registers: on tensor cores (mma.sync m16n8k16, PTX ISA), or thread by thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
    """An operand in shared memory; `turned` when its first axis is the contracted one."""

    shared: Shared
    turned: bool


@dataclass(frozen=True)
class InRegisters:
    """A left operand that the same threads hold as the result of an earlier contraction: its blocks are those of the operand."""

    buffer: Any
    layout: Layout


def on_tensor_cores(
    layout: Layout, left: InShared | InRegisters, right: InShared, into: Any, steps: int, dtype: str, thread: Any
) -> None:
    """``into += left right`` over `steps` contracted elements, padding included zeros in both operands."""
    blocks, columns, _, _ = layout.dims
    lane = tirx.truncmod(thread, WARP)
    a = T.alloc_buffer([blocks * 8], dtype, scope="local")
    b = T.alloc_buffer([8], dtype, scope="local")
    IRBuilder.name("left", a)
    IRBuilder.name("right", b)
    with T.unroll(0, padded(steps) // PAD) as k:
        for block in range(blocks):
            if isinstance(left, InRegisters):
                first = (block * left.layout.dims[1] + 2 * k) * 4
                for pair in range(0, 8, 2):
                    with T.vectorized(0, 2) as v:
                        T.buffer_store(a, left.buffer[(first + pair + v,)].astype(dtype), [block * 8 + pair + v])
            else:
                row = layout.first_row(thread) + block * PAD
                _ldmatrix(a, block * 8, left, row, k * PAD, lane, dtype, tall=True)
        with T.unroll(0, columns // 2) as n, _inside(layout, layout.first_column(thread) + n * PAD):
            _ldmatrix(b, 0, right, layout.first_column(thread) + n * PAD, k * PAD, lane, dtype, tall=False)
            for block in range(blocks):
                for half in range(2):
                    at = ((block * columns) + 2 * n + half) * 4
                    T.evaluate(
                        T.ptx_legacy.mma(
                            "m16n8k16", "row", "col", PTX[dtype], PTX[dtype], "fp32",
                            a.data, block * 8, b.data, half * 4, into.data, at, False, dtype="float32",
                        )
                    )  # fmt: skip


@contextmanager
def _inside(layout: Layout, column: Any) -> Iterator[None]:
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
