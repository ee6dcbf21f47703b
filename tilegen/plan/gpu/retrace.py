"""Walks there and back as one kernel: what the way back needs of the way there is computed anew instead of being read.

A backward often walks twice: along the sequence, where it computes the forward's states again and writes what the way back needs at
every step, and back.  Here the forward leaves its states at *marks*, every `SPAN` steps; the way back then takes one span after
another from the end, goes through it in the forward's direction from the states at its mark, keeps what is needed in registers,
and comes back.  Nothing is written for every step, and the inputs are read once.

Steps behind the end come first on the way back.  They must not add anything, so some inputs are read as zero there: the gradients of
the results, which every term of the scans has as a factor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm import sym, te

from tilegen.expression import placeholder
from tilegen.expression.scan import scan_inputs
from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.plan.access import Point, stage_reads
from tilegen.plan.cost import sources
from tilegen.plan.gpu.vanish import vanishes
from tilegen.plan.gpu.walk_strata import reductions_of, scans_of, strata
from tilegen.plan.kernel import Kernel, Marks
from tilegen.plan.plan import FunctionPlan, PlanArg
from tilegen.schedules.rule import Gpu

SPAN = 64
"""Steps from mark to mark: a block's threads hold what the way back needs of so many."""


@dataclass
class Retrace:
    """A walk back with the walk there inside.

    Parameters
    ----------
    there, back : the two walks.
    marks : where the forward left the states of `there`, among others.
    numbers : of the scans of `there`, stratum by stratum, the place of each in the marks.
    kept : what `back` reads of the results of `there`: held on chip.
    silent : inputs that read as zero behind the end.
    loads : what is read from memory.
    """

    there: Kernel
    back: Kernel
    marks: Marks
    numbers: list[int]
    kept: list[te.Tensor]
    silent: list[te.Tensor]
    loads: list[te.Tensor] = field(default_factory=list)
    pattern: str = "retrace"

    @property
    def name(self) -> str:
        """That of the walk back."""
        return self.back.name

    @property
    def space(self) -> list[Any]:
        """Extents of the points that are independent of each other."""
        return self.back.space

    @property
    def emits(self) -> list[te.Tensor]:
        """Stages written at every point."""
        return [*(t for t in self.there.emits if t not in self.kept), *self.back.emits]

    def writes(self) -> list[te.Tensor]:
        """Everything that is written to memory."""
        return self.emits


STATES = {80: 8, 90: 16}
"""States of a walk that nvcc still keeps in registers, by the compute capability from which on it does."""


def retraced(functions: Mapping[str, FunctionPlan], gpu: Gpu = Gpu()) -> dict[str, FunctionPlan]:  # noqa: B008
    """The functions of a plan with walks there and back joined, where there are any and their states fit the registers."""
    most = max((states for capability, states in STATES.items() if capability <= gpu.capability), default=0)
    found = dict(functions)
    if "forward" not in found or "backward" not in found:
        return found
    forward, backward = found["forward"], found["backward"]
    for i, there in enumerate(backward.kernels):
        for k, back in enumerate(backward.kernels[i + 1 :], i + 1):
            joined = _joined(forward, backward, there, back, backward.kernels[i + 1 : k])
            if joined is None or max(len(scans_of(there)), len(scans_of(back))) > most:
                continue
            home, kernel = joined
            arg = PlanArg("saved_marks", "saved", kernel.marks.tensor)
            kernels = [dataclasses.replace(x, marks=kernel.marks) if x is home else x for x in forward.kernels]
            found["forward"] = dataclasses.replace(forward, args=_beside(forward.args, arg), kernels=kernels)
            args = [a for a in backward.args if a.tensor not in kernel.kept]
            kernels = [kernel if x is back else x for x in backward.kernels if x is not there]
            ready = {*backward.ready, kernel.marks.tensor}
            found["backward"] = FunctionPlan("backward", _beside(args, arg), kernels, ready)  # type: ignore[arg-type]
            return found
    return found


def _beside(args: list[PlanArg], new: PlanArg) -> list[PlanArg]:
    """`args` with what is saved behind the arguments and results of the forward."""
    at = max((i for i, arg in enumerate(args) if arg.role in ("input", "output", "saved")), default=-1) + 1
    return [*args[:at], new, *args[at:]]


def _joined(
    forward: FunctionPlan, backward: FunctionPlan, there: Kernel, back: Kernel, between: list[Kernel]
) -> tuple[Kernel, Retrace] | None:
    """(the forward's kernel that leaves the marks, the joined kernel), or None where two kernels are no walks there and back."""
    if not _is_pair(there, back):
        return None
    roles = {arg.tensor: arg.role for arg in backward.args}
    kept = [tensor for tensor in there.emits if roles[tensor] == "workspace" and tensor in back.loads]
    others = [kernel for kernel in backward.kernels if kernel is not back]
    if not kept or any(tensor in kernel.loads for kernel in others for tensor in kept):
        return None
    if any(tensor in kernel.loads for kernel in between for tensor in there.emits):
        return None
    scans = _ordered(there, backward)
    home = next((k for k in forward.kernels if _continues(k, there) and set(scans) <= set(_ordered(k, forward))), None)
    if home is None:
        return None
    marked = _ordered(home, forward)
    dtypes = {str(scan.dtype) for scan in marked}
    if len(dtypes) != 1 or not _distances(back, kept, backward, there.reverse) <= {0, 1}:
        return None
    silent = [arg.tensor for arg in backward.args if arg.role == "grad_output"]
    terms = [scan_inputs(scan.op)["x"] for scan in scans_of(back)]
    if not all(vanishes(term, silent) for term in terms):
        return None
    shape = [len(marked), *there.space[: there.position], there.extent // SPAN + 1, *there.space[there.position :]]
    marks = Marks(placeholder(shape, dtypes.pop(), "marks"), SPAN)
    kernel = Retrace(there, back, marks, [marked.index(scan) for scan in scans], kept, silent)
    memory = backward.in_memory() - {*kept}
    loads = dict.fromkeys([*sources(there, memory)[0], *(t for t in back.loads if t not in kept), marks.tensor])
    kernel.loads = list(loads)
    return home, kernel


def _is_pair(there: Kernel, back: Kernel) -> bool:
    """Whether two kernels walk the same axis, one there and one back, and leave nothing behind but results at every step."""
    for kernel in (there, back):
        if kernel.pattern != "walk" or not kernel.directed or kernel.finals or kernel.latches or reductions_of(kernel):
            return False
    if there.reverse == back.reverse or there.position != back.position or not stages.equal(there.extent, back.extent):
        return False
    few = sum(const_int(n) is None for n in there.space) < 2
    last = bool(there.space) and const_int(there.space[-1]) is not None and there.position < len(there.space)
    return few and last and stages.same_extents(there.space, back.space)


def _continues(kernel: Kernel, there: Kernel) -> bool:
    """Whether a kernel of the forward goes the way of `there`."""
    if kernel.pattern != "walk" or kernel.reverse != there.reverse or kernel.position != there.position:
        return False
    return stages.equal(kernel.extent, there.extent) and stages.same_extents(kernel.space, there.space)


def _ordered(kernel: Kernel, function: FunctionPlan) -> list[te.Tensor]:
    """The scans of a kernel, stratum by stratum."""
    ready = function.in_memory() - set(kernel.writes())
    return [scan for stratum in strata(kernel, ready) for scan in stratum.scans]


def _distances(kernel: Kernel, kept: list[te.Tensor], function: FunctionPlan, reverse: bool) -> set[int | None]:
    """How many steps further along the way there a walk reads what is kept; None for any other place."""
    point = Point(kernel)
    ready = function.in_memory() - set(kernel.writes())
    found: set[int | None] = set()
    seen: set[str] = set()
    stack: list[tuple[te.Tensor, list[Any]]] = [(tensor, point.full()) for tensor in [*kernel.anchors, *kernel.emits]]
    while stack:
        tensor, indices = stack.pop()
        key = f"{hash(tensor)} {indices}"
        if key in seen:
            continue
        seen.add(key)
        if tensor in kept:
            at = kernel.position
            aside = [stages.equal(a, b) for k, (a, b) in enumerate(zip(indices, point.full(), strict=True)) if k != at]
            away = const_int(sym.Analyzer().simplify(indices[at] - point.step)) if all(aside) else None
            found.add(-away if away is not None and reverse else away)
        elif tensor not in ready:
            stack += stage_reads(tensor, indices)
    return found
