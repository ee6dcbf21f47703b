"""Results that follow point by point from a reduction are written by its kernel: a rounded sum needs no launch, and no memory, for the sum itself.

A sum and its rounding are two stages, which the planner of tiles gives a kernel each.  The threads that have the sums can round them.
"""

from __future__ import annotations

import dataclasses

from tvm import te

from tilegen.plan.access import fusible
from tilegen.plan.cost import sources
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan


def finished(function: FunctionPlan) -> FunctionPlan:
    """`function` without maps of what one reduction gives them."""
    for kernel in function.kernels:
        for total in kernel.finals if kernel.pattern == "reduce" else []:
            made = _finished(function, kernel, total)
            if made is not None:
                return finished(made)
    return function


def _finished(function: FunctionPlan, kernel: Kernel, total: te.Tensor) -> FunctionPlan | None:
    """`function` in which `kernel` writes all that is made from its result `total`, instead of that; None if others need it."""
    memory, place = function.in_memory(), next(k for k, known in enumerate(function.kernels) if known is kernel)
    role = next(arg.role for arg in function.args if arg.tensor in {total})
    readers = [other for other in function.kernels if other is not kernel and total in sources(other, memory)[0]]
    if role != "workspace" or len(readers) != 1 or readers[0].pattern != "map":
        return None
    (reader,) = readers
    later = {t for other in function.kernels[place:] for t in other.writes()}
    made = [t for t in reader.emits if total in _read(t, memory)]
    simple = all(
        _read(t, memory) & later == {total} and fusible(t, kernel, memory - {t, *kernel.anchors}, final=True) for t in made
    )
    if not simple:
        return None
    after = dataclasses.replace(kernel, finals=[*[t for t in kernel.finals if t not in {total}], *made])
    rest = dataclasses.replace(reader, emits=[t for t in reader.emits if t not in made])
    kernels = [after if k is kernel else rest if k is reader else k for k in function.kernels]
    kernels = [k for k in kernels if k is not rest or rest.emits]
    args = [arg for arg in function.args if arg.tensor not in {total}]
    left = memory - {total}
    for changed in (after, rest):
        changed.loads = sources(changed, left)[0]
    return dataclasses.replace(function, args=args, kernels=kernels)


def _read(tensor: te.Tensor, memory: set[te.Tensor]) -> set[te.Tensor]:
    """What a pointwise result reads from memory."""
    return set(sources(Kernel("map", list(tensor.shape), emits=[tensor]), memory)[0])
