"""Scatter-adds on a GPU: equal bits for equal inputs, without atomics.

Where no two rows meet every element is a thread of its own, after a launch that writes the zeros.  Elsewhere a thread owns a column
of the result, all its rows: it writes the zeros and adds the rows in their order.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.gather import scatter_spec
from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.gpu.func import Buffers, Decisions, launch, name
from tilegen.plan.gpu.lanes import product, unravel
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu


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

    def column(others: list[Any]) -> None:
        def at(row: Any) -> list[Any]:
            return [*others[: spec.axis], row, *others[spec.axis :]]

        with T.serial(0, tensor.shape[spec.axis]) as row:
            T.buffer_store(out, zero, at(row))
        with T.serial(0, updates.shape[spec.axis]) as row:
            add(at(row))

    _each([n for k, n in enumerate(updates.shape) if k != spec.axis], decisions["threads"], column)


def _each(space: Any, threads: int, body: Any) -> None:
    """A launch with one thread for each point of `space`."""
    total = product(list(space))
    with launch([tirx.floordiv(total + (threads - 1), threads)], threads) as ((block,), thread):
        flat = name("flat", T.Bind(block * threads + thread))
        with T.If(flat < total), T.Then():
            body([name(f"p{k}", T.Bind(at)) for k, at in enumerate(unravel(flat, list(space)))])


def _add(kernel: Kernel, tensor: te.Tensor, axis: int, buffers: Buffers, math: MathRule, point: list[Any]) -> None:
    """Add the update at `point` to its place, if that exists."""
    updates, index = tensor.op.inputs
    out, rows = buffers[tensor], tensor.shape[axis]
    values = Evaluator(kernel, buffers, math, point, None, {})
    value = values.value_at(updates, point)
    here = [0 if const_int(n) == 1 and k != axis else p for k, (n, p) in enumerate(zip(index.shape, point, strict=True))]
    place = values.element(index, here)
    target = [place if k == axis else p for k, p in enumerate(point)]
    with T.If(tirx.all(place >= 0, place < rows)), T.Then():
        T.buffer_store(out, out[tuple(target)] + value, target)
