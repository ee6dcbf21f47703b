"""Long sums of few results in two stages: blocks add up parts of them, and their partial sums are added up afterwards.

A block owns some results and all that is summed for them.  Where there are fewer results than a GPU has threads, most of it would have
no work: then every result is summed in `parts`, of neighbouring elements each, and both stages add in a fixed order.  Rows that a
scatter-add adds up at few places are such sums too.
"""

from __future__ import annotations

import dataclasses
import math

from tilegen.expression import placeholder
from tilegen.expression.gather import scatter_spec
from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.plan.gpu.finish import finished
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan, PlanArg

BLOCK = 32
"""Results of a block, about."""
WANTED = 384
"""Blocks that keep a GPU busy."""
MOST = 64
"""Parts of a sum."""
MOST_OF_ROWS = 512
"""Parts of a scatter-add: one warp each."""
CELLS = 1 << 20
"""Elements of all parts of one column, about: 4 MB that are written and read."""


def partial(function: FunctionPlan) -> FunctionPlan:
    """`function` with workspace for the partial sums of reductions of few results."""
    function = finished(function)
    kernels: list[Kernel] = []
    args = list(function.args)
    for kernel in function.kernels:
        parts = _parts(kernel) if kernel.pattern != "scatter" else _parts_of_rows(kernel)
        if parts > 1:
            added = list(kernel.anchors[0].shape) if kernel.pattern == "scatter" else [len(kernel.anchors), *kernel.space]
            shape = [parts, *added]
            tensor = placeholder(shape, str(kernel.anchors[0].dtype), f"{kernel.name}_parts")
            args.append(PlanArg(f"workspace_{kernel.name}_parts", "workspace", tensor))
            kernel = dataclasses.replace(kernel, partial=tensor)
        kernels.append(kernel)
    return function if len(args) == len(function.args) else dataclasses.replace(function, args=args, kernels=kernels)


def _parts(kernel: Kernel) -> int:
    """In how many parts a kernel's sums are added: a power of two, and one for short sums and for many results."""
    if kernel.pattern != "reduce" or not kernel.space or len({str(anchor.dtype) for anchor in kernel.anchors}) > 1:
        return 1
    results = [const_int(n) for n in kernel.space]
    long = any(const_int(axis.dom.extent) is None for axis in stages.reduce_axes(kernel.anchors[0]))
    if None in results or not long:
        return 1
    blocks = math.prod(n for n in results[:-1] if n is not None) * -(-(results[-1] or 1) // BLOCK)
    return min(MOST, 1 << (max(1, WANTED // blocks)).bit_length() - 1)


def _parts_of_rows(kernel: Kernel) -> int:
    """In how many parts rows are added up at data-dependent places: one for few rows, for many places, and where none meet."""
    tensor = kernel.anchors[0]
    spec = scatter_spec(tensor.op)
    assert spec is not None
    places = const_int(tensor.shape[spec.axis])
    if spec.unique or places is None or const_int(tensor.op.inputs[0].shape[spec.axis]) is not None:
        return 1
    return min(MOST_OF_ROWS, 1 << (max(1, CELLS // places)).bit_length() - 1)
