"""Contractions of float32 operands on tensor cores: rounded to TF32, added up in float32 (mma.sync m16n8k8, PTX ISA).

TF32 has the exponent of float32 and ten bits after the point.  Operands are rounded to the nearest one, ties away from zero, as
``cvt.rna.tf32.f32`` does: what is computed is rounded when it is written to shared memory, what a walk copies there as it is when
it is loaded from there.

Accumulators hold two neighbouring columns where the operand wants two that are four apart.  The order in which elements are
contracted is free: a step may take its columns in the order of the accumulators (*paired*: 0, 2, 4, 6, 1, 3, 5, 7), and the rows of
the right operand in the same order.  In that order an operand with the contracted axis first meets no bank conflict either.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tilegen.plan.gpu.contract import Fragments, InRegisters, InShared, inside, operand
from tilegen.plan.gpu.func import WARP
from tilegen.plan.gpu.layout import PAD, TF32, Layout, padded
from tilegen.plan.gpu.shared import Shared
from tilegen.plan.gpu.values import rounded

__all__ = ["TF32", "kept", "on_tensor_cores"]

STEP = 8
"""Elements that one instruction contracts."""

ROUND = """__device__ __forceinline__ float tilegen_tf32(float x) {
  unsigned int rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}
"""
MULTIPLY = """__device__ __forceinline__ void tilegen_mma_tf32(float* c, const float* a, const float* b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
    : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
    : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
      "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
"""


def nearest(value: Any) -> Any:
    """The TF32 number nearest to a float32 `value`, as float32."""
    return T.cuda.func_call("tilegen_tf32", value, source_code=ROUND, return_type="float32")


def kept(value: Any, shared: Shared) -> Any:
    """`value` as a buffer in shared memory keeps it."""
    value = rounded(value, shared.dtype)
    return nearest(value) if shared.tf32 else value


def is_paired(layout: Layout, left: InShared | InRegisters, right: InShared) -> bool:
    """Whether a product takes what is contracted in the order of accumulators: it must, or shared memory is busy for a shorter time.

    `ldmatrix` loads rows in order.  Elements of the other axis, in order, and two neighbours, in pairs, meet two-way bank conflicts.
    """
    if isinstance(left, InRegisters):
        return True
    blocks, columns, _, _ = layout.dims
    busy = lambda paired: 2 * blocks * (1 + (left.turned is not paired)) + columns * (1 + (right.turned is not paired))  # noqa: E731
    return bool(busy(True) < busy(False))


def on_tensor_cores(
    layout: Layout,
    left: InShared | InRegisters,
    right: InShared,
    into: Any,
    steps: int,
    thread: Any,
    fragments: Fragments,
) -> None:
    """``into += left right`` over `steps` contracted elements, padding included zeros in both operands."""
    blocks, columns, _, _ = layout.dims
    count, begin = padded(steps) // STEP, tirx.const(0, "int32")
    if isinstance(left, InRegisters) and left.layout.slant is not None:
        # Outside its band the left operand is zero.
        count, begin = left.layout.slant[1] // STEP, left.layout.first_column(thread)
    a, load_a, all_a = operand(layout, left, True, blocks * 4, count, "float32", fragments)
    b, load_b, all_b = operand(layout, right, False, columns * 2, count, "float32", fragments)
    with T.unroll(0, count) as k:
        first_a, first_b = (k * blocks * 4 if all_a else 0), (k * columns * 2 if all_b else None)
        for block in range(blocks if load_a else 0):
            at = first_a + block * 4
            if isinstance(left, InRegisters):
                held = (block * left.layout.dims[1] + k) * 4
                for slot in range(4):
                    T.buffer_store(a, nearest(left.buffer[(held + slot % 2 * 2 + slot // 2,)]), [at + slot])
            else:
                _load(a, at, left, layout.first_row(thread) + block * PAD, k * STEP, thread, tall=True)
        with T.unroll(0, columns // 2) as n, inside(layout, layout.first_column(thread) + n * PAD):
            at_b = 0 if first_b is None else first_b + n * 4
            if load_b:
                _load(b, at_b, right, layout.first_column(thread) + n * PAD, begin + k * STEP, thread, tall=False)
            for block in range(blocks):
                for half in range(2):
                    where = (into[(((block * columns) + 2 * n + half) * 4,)], a[(first_a + block * 4,)], b[(at_b + half * 2,)])
                    pointers = [T.address_of(load) for load in where]
                    T.evaluate(T.cuda.func_call("tilegen_mma_tf32", *pointers, source_code=MULTIPLY, return_type="void"))


def _load(target: Any, at: Any, side: InShared, free: Any, step: Any, thread: Any, tall: bool) -> None:
    """Four registers: 16 elements of the free axis from `free`, 8 of the contracted one from `step`.

    A left operand (`tall`) has (free 0, step 0), (free 8, step 0), (free 0, step 1), (free 8, step 1), where a step is four elements or, of
    pairs, every other one; a right one (free 0, step 0), (free 0, step 1), (free 8, step 0), (free 8, step 1).
    """
    shared, lane = side.shared, tirx.truncmod(thread, WARP)
    group, place = tirx.truncdiv(lane, 4), tirx.truncmod(lane, 4)
    if not side.turned and not side.paired:
        # A matrix of 8 x 8 elements of 16 bits is one of 8 x 4 of 32.
        matrix, row = tirx.truncdiv(lane, 8), tirx.truncmod(lane, 8)
        low, high = tirx.truncmod(matrix, 2), tirx.truncdiv(matrix, 2)
        free_part, step_part = (low, high) if tall else (high, low)
        pointer = shared.buffer.access_ptr("r", offset=shared.flat([free + free_part * 8 + row, step + step_part * 4]))
        T.evaluate(T.ptx_legacy.ldmatrix(False, 4, ".b16", target.data, at, pointer, 0, dtype="float32"))
    for half in range(2):
        row = free + half * 8 + group
        slots = [at + (slot * 2 + half if tall else half * 2 + slot) for slot in range(2)]
        if side.turned:
            for slot, register in enumerate(slots):
                line = step + (place * 2 + slot if side.paired else place + slot * 4)
                T.buffer_store(target, shared.buffer[(shared.flat([line, row]),)], [register])
        elif side.paired:
            pair = T.alloc_buffer([2], "float32", scope="local")
            with T.vectorized(0, 2) as v:
                T.buffer_store(pair, shared.buffer[(shared.flat([row, step + place * 2]) + v,)], [v])
            for slot, register in enumerate(slots):
                T.buffer_store(target, pair[(slot,)], [register])
        if not shared.tf32:
            for register in slots:
                T.buffer_store(target, nearest(target[(register,)]), [register])
