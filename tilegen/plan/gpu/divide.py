"""Walks with more states than threads have registers become several walks.

A thread of a walk holds all of its states, twice, and its groups of steps are the shorter the more there are: short groups exchange
their states more often.  Sums and states that have nothing to do with each other, as those of the gradients of many decays, are
walked apart instead, at the price of reading the inputs once more.
"""

from __future__ import annotations

import dataclasses

from tvm import te

from tilegen.plan.access import anchors_below
from tilegen.plan.cost import sources
from tilegen.plan.gpu.walk_strata import reductions_of, scans_of
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan

MOST = 32
"""Scans and sums of a walk: a thread holds each twice, and has 255 registers."""


def divided(function: FunctionPlan) -> FunctionPlan:
    """`function` with its larger walks divided, as far as their states are independent."""
    kernels: list[Kernel] = []
    for kernel in function.kernels:
        kernels += _parts(kernel, function)
    if len(kernels) == len(function.kernels):
        return function
    counts: dict[str, int] = {}
    for kernel in kernels:
        kernel.name = f"{kernel.pattern}{counts.setdefault(kernel.pattern, 0)}"
        counts[kernel.pattern] += 1
    return dataclasses.replace(function, kernels=kernels)


def _parts(kernel: Kernel, function: FunctionPlan) -> list[Kernel]:
    """A kernel, or what it is divided into."""
    if kernel.pattern != "walk" or len(scans_of(kernel)) + len(reductions_of(kernel)) <= MOST or kernel.latches:
        return [kernel]
    memory = function.in_memory()
    groups = _independent(kernel, memory - set(kernel.writes()))
    count = min(len(groups), -(-len(kernel.anchors) // MOST))
    if count == 1:
        return [kernel]
    size = -(-len(kernel.anchors) // count)
    bins: list[set[te.Tensor]] = [set()]
    for group in groups:
        if bins[-1] and sum(t in kernel.anchors for t in bins[-1] | group) > size:
            bins.append(set())
        bins[-1] |= group
    found = []
    for own in bins:
        part = dataclasses.replace(
            kernel,
            anchors=[t for t in kernel.anchors if t in own],
            emits=[t for t in kernel.emits if t in own],
            finals=[t for t in kernel.finals if t in own],
        )
        part.loads = sources(part, memory)[0]
        found.append(part)
    return found


def _independent(kernel: Kernel, ready: set[te.Tensor]) -> list[set[te.Tensor]]:
    """The anchors and results of a kernel in groups that have nothing to do with each other, in the order of the anchors."""
    own = set(kernel.anchors)
    groups: list[set[te.Tensor]] = []
    for tensor in dict.fromkeys([*kernel.anchors, *kernel.writes()]):
        together = {tensor} | (anchors_below(tensor, ready) & own)
        apart = []
        for group in groups:
            if group & together:
                together |= group
            else:
                apart.append(group)
        groups = [*apart, together]
    order = {anchor: k for k, anchor in enumerate(kernel.anchors)}
    return sorted(groups, key=lambda group: min(order.get(t, len(order)) for t in group))
