"""Scatter-adds on a GPU: equal bits for equal inputs, without atomics.

Where no two rows meet every element is a thread of its own, after a launch that writes the zeros.  Where many rows meet at few places
(`partial.py`) they are divided among warps:

    block    one warp, a part of the rows of a column, up to `PLACES` of its places in shared memory
      round    32 neighbouring rows: lanes with one place add their rows up, and the first of them adds the sum to that place

and a second launch adds up the parts.  Elsewhere a thread owns a column of the result, all its rows: it writes the zeros and adds the
rows in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.gather import scatter_spec
from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.gpu.func import WARP, Buffers, Decisions, barrier, launch, name
from tilegen.plan.gpu.lanes import product, registers, unravel
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

PLACES = 8192
"""Places of a column that a block adds to: 32 KB of shared memory in float32."""
AHEAD = 4
"""Rounds whose rows are loaded together."""


def lower_scatter(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a scatter-add; decisions: threads (of a block)."""
    (tensor,) = kernel.anchors
    updates = tensor.op.inputs[0]
    spec = scatter_spec(tensor.op)
    assert spec is not None
    out, zero = buffers[tensor], tirx.const(0, str(tensor.dtype))

    def add(point: list[Any]) -> None:
        _add(kernel, tensor, spec.axis, buffers, math, point)

    if spec.unique:
        _each(tensor.shape, decisions["threads"], lambda point: T.buffer_store(out, zero, point))
        _each(updates.shape, decisions["threads"], add)
        return

    if kernel.partial is not None:
        _divided(kernel, tensor, spec.axis, buffers, decisions, math)
        return

    def column(others: list[Any]) -> None:
        def at(row: Any) -> list[Any]:
            return [*others[: spec.axis], row, *others[spec.axis :]]

        with T.serial(0, tensor.shape[spec.axis]) as row:
            T.buffer_store(out, zero, at(row))
        with T.serial(0, updates.shape[spec.axis]) as row:
            add(at(row))

    _each([n for k, n in enumerate(updates.shape) if k != spec.axis], decisions["threads"], column)


def _divided(kernel: Kernel, tensor: te.Tensor, axis: int, buffers: Buffers, decisions: Decisions, math: MathRule) -> None:
    """Sums of parts of the rows, and of the parts."""
    assert kernel.partial is not None
    updates, parted = tensor.op.inputs[0], buffers[kernel.partial]
    parts, places = const_int(kernel.partial.shape[0]) or 1, const_int(tensor.shape[axis]) or 1
    rows, width = updates.shape[axis], min(places, PLACES)
    slices, zero = -(-places // width), tirx.const(0, str(tensor.dtype))
    columns = [n for k, n in enumerate(updates.shape) if k != axis]
    with launch([product([*columns, slices, parts])], WARP) as ((block,), lane):
        at = [name(f"p{k}", T.Bind(i)) for k, i in enumerate(unravel(block, [parts, slices, *columns]))]
        part, low, others = at[0], name("low", T.Bind(at[1] * width)), at[2:]
        held = name("held", T.alloc_buffer([width], str(tensor.dtype), scope="shared"))

        def each(one: Callable[[Any], None]) -> None:
            with T.serial(0, -(-width // WARP)) as turn:
                cell = name("cell", T.Bind(turn * WARP + lane))
                with T.If(cell < width), T.Then():
                    one(cell)

        def leave(cell: Any) -> None:
            with T.If(low + cell < places), T.Then():
                T.buffer_store(parted, held[cell], [part, *others[:axis], low + cell, *others[axis:]])

        each(lambda cell: T.buffer_store(held, zero, [cell]))
        barrier()
        span = AHEAD * WARP
        turns = name("turns", T.Bind(tirx.floordiv(rows + (parts * span - 1), parts * span)))
        with T.serial(0, turns) as turn:
            place, value = registers("place", [AHEAD], "int32"), registers("value", [AHEAD], str(tensor.dtype))
            for n in range(AHEAD):
                row = name("row", T.Bind((part * turns + turn) * span + n * WARP + lane))
                T.buffer_store(place, tirx.const(-1, "int32"), [n])
                T.buffer_store(value, zero, [n])
                with T.If(row < rows), T.Then():
                    found, target = _update(kernel, tensor, axis, buffers, math, [*others[:axis], row, *others[axis:]])
                    T.buffer_store(place, target - low, [n])
                    T.buffer_store(value, found, [n])
            for n in range(AHEAD):
                _add_round(held, place, value, n, lane, width)
        each(leave)

    def join(point: list[Any]) -> None:
        total = registers("total", [1], str(tensor.dtype))
        T.buffer_store(total, zero, [0])
        with T.serial(0, parts) as part:
            T.buffer_store(total, total[0] + parted[(part, *point)], [0])
        T.buffer_store(buffers[tensor], total[0], point)

    _each(tensor.shape, decisions["threads"], join)


def _add_round(held: Any, place: Any, value: Any, n: int, lane: Any, width: int) -> None:
    """Add a warp's rows of round `n` to their places: equal places are summed by shuffles, in the order of the masks."""
    total, first = registers("total", [1], str(value.dtype)), registers("first", [1], "int32")
    T.buffer_store(total, value[n], [0])
    T.buffer_store(first, tirx.const(1, "int32"), [0])
    everyone = tirx.const(0xFFFFFFFF, "uint32")
    with T.unroll(1, WARP) as mask:
        there = name("there", T.Bind(T.tvm_warp_shuffle_xor(everyone, place[n], mask, WARP, WARP)))
        other = name("other", T.Bind(T.tvm_warp_shuffle_xor(everyone, value[n], mask, WARP, WARP)))
        meets = name("meets", T.Bind(tirx.EQ(there, place[n])))
        T.buffer_store(total, total[0] + tirx.Select(meets, other, tirx.const(0, str(value.dtype))), [0])
        earlier = tirx.all(meets, tirx.bitwise_xor(lane, mask) < lane)
        T.buffer_store(first, tirx.Select(earlier, tirx.const(0, "int32"), first[0]), [0])
    with T.If(tirx.all(first[0] > 0, place[n] >= 0, place[n] < width)), T.Then():
        T.buffer_store(held, held[place[n]] + total[0], [place[n]])
    barrier()


def _each(space: Any, threads: int, body: Any) -> None:
    """A launch with one thread for each point of `space`."""
    total = product(list(space))
    with launch([tirx.floordiv(total + (threads - 1), threads)], threads) as ((block,), thread):
        flat = name("flat", T.Bind(block * threads + thread))
        with T.If(flat < total), T.Then():
            body([name(f"p{k}", T.Bind(at)) for k, at in enumerate(unravel(flat, list(space)))])


def _update(kernel: Kernel, tensor: te.Tensor, axis: int, buffers: Buffers, math: MathRule, point: list[Any]) -> tuple[Any, Any]:
    """The value of the update at `point`, and its place."""
    updates, index = tensor.op.inputs
    values = Evaluator(kernel, buffers, math, point, None, {})
    value = values.value_at(updates, point)
    here = [0 if const_int(n) == 1 and k != axis else p for k, (n, p) in enumerate(zip(index.shape, point, strict=True))]
    return value, values.element(index, here)


def _add(kernel: Kernel, tensor: te.Tensor, axis: int, buffers: Buffers, math: MathRule, point: list[Any]) -> None:
    """Add the update at `point` to its place, if that exists."""
    out, rows = buffers[tensor], tensor.shape[axis]
    value, place = _update(kernel, tensor, axis, buffers, math, point)
    target = [place if k == axis else p for k, p in enumerate(point)]
    with T.If(tirx.all(place >= 0, place < rows)), T.Then():
        T.buffer_store(out, out[tuple(target)] + value, target)
