"""Scatter-adds as TIR: zeros, then the rows one after another.

::

    for n in result:            <name>_zero
    for m in updates:           <name>_add    y[.., index[m], ..] += updates[m] if the place exists

Rows that meet at one place are added in their order: the rule of a schedule keeps the loop over rows serial and in order, unless
the operation promises that no two rows meet.  So equal inputs give equal bits, without atomics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import ir, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.gather import scatter_spec
from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.kernel import Kernel
from tilegen.plan.scope import scope
from tilegen.schedules.rule import APART, ROWS, UNORDERED


def emit_scatter(kernel: Kernel, buffers: Mapping[te.Tensor, Any], math: MathRule) -> None:
    """Emit `kernel`; `buffers` are the function's arguments."""
    (tensor,) = kernel.anchors
    updates, index = tensor.op.inputs
    spec, out = scatter_spec(tensor.op), buffers[tensor]
    assert spec is not None
    with _block(f"{kernel.name}_zero", tensor.shape) as point:
        T.buffer_store(out, tirx.const(0, str(tensor.dtype)), point)
    with _block(f"{kernel.name}_add", updates.shape) as point:
        rows = tensor.shape[spec.axis]
        # To a schedule's primitives this is a map onto whole columns: what it adds to is not said to be read.
        T.reads([])
        T.writes([out[tuple(slice(0, rows) if k == spec.axis else p for k, p in enumerate(point))]])
        apart = spec.axis == len(point) - 1 or const_int(index.shape[-1]) != 1
        T.sblock_attr({ROWS: spec.axis, UNORDERED: int(spec.unique), APART: int(apart)})
        values = Evaluator(kernel, buffers, math, point, None, {})
        value = values.value_at(updates, point)
        here = [0 if const_int(n) == 1 and k != spec.axis else p for k, (n, p) in enumerate(zip(index.shape, point, strict=True))]
        place = values.element(index, here)
        target = [place if k == spec.axis else p for k, p in enumerate(point)]
        with T.If(tirx.all(place >= 0, place < rows)), T.Then():
            T.buffer_store(out, out[tuple(target)] + value, target)


@contextmanager
def _block(name: str, extents: Sequence[Any]) -> Iterator[list[Any]]:
    """A block over `extents` in a scope of its own, where it is the only writer."""
    with ExitStack() as stack:
        stack.enter_context(scope(name))
        frame = stack.enter_context(T.grid(*extents))
        loops = [frame] if isinstance(frame, ir.Var) else list(frame)
        stack.enter_context(T.sblock(name))
        yield [T.axis.spatial(n, loop) for n, loop in zip(extents, loops, strict=True)]
