"""The order in which the scans of a walk can be resolved in parallel.

A scan is linear (or a minimum, or a maximum) in its own state, given what it adds and by what it decays.  Where these read other
scans, those must be known first: scans fall into strata, and each is scanned in parallel once the ones below are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tvm import te

from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.plan.access import anchors_below
from tilegen.plan.kernel import Kernel


@dataclass(frozen=True)
class Decay:
    """By what the state before a group of steps enters the state after it: shared by scans with the same factors and resets.

    `steady`: the factor is the same at every step.
    """

    factor: te.Tensor | None
    reset: te.Tensor | None
    steady: bool


@dataclass(frozen=True)
class Stratum:
    """Scans that can be resolved together; `below` are the scans that their values are made of."""

    scans: tuple[te.Tensor, ...]
    below: tuple[te.Tensor, ...]


def decay_of(scan: te.Tensor) -> Decay | None:
    """How a scan passes on the state before; None for all of it."""
    spec, sources = scan_spec(scan.op), scan_inputs(scan.op)
    if not spec.decay and not spec.reset:
        return None
    factor = sources.get("decay")
    steady = not spec.reset and factor is not None and const_int(factor.shape[spec.axis]) == 1
    return Decay(factor, sources.get("reset"), steady)


def scans_of(kernel: Kernel) -> list[te.Tensor]:
    """The scans that a walk carries."""
    return [anchor for anchor in kernel.anchors if stages.kind(anchor) == "scan"]


def reductions_of(kernel: Kernel) -> list[te.Tensor]:
    """The reductions that a walk carries."""
    return [anchor for anchor in kernel.anchors if stages.kind(anchor) == "reduce"]


def closure(tensors: Iterable[te.Tensor], kernel: Kernel, ready: Collection[te.Tensor]) -> list[te.Tensor]:
    """The scans of `kernel` that `tensors` are made of, themselves included, in the order of the kernel."""
    scans = set(scans_of(kernel))
    found: set[te.Tensor] = set()
    stack = list(tensors)
    while stack:
        tensor = stack.pop()
        below = anchors_below(tensor, ready) & scans
        below |= {tensor} & scans
        stack += below - found - {tensor}
        found |= below
    return [scan for scan in scans_of(kernel) if scan in found]


def strata(kernel: Kernel, ready: Collection[te.Tensor]) -> list[Stratum]:
    """The scans of a walk, lowest stratum first; within one, scans with the same decay next to each other."""
    scans = scans_of(kernel)
    own = set(scans)
    level: dict[te.Tensor, int] = {}

    def depth(scan: te.Tensor) -> int:
        if scan not in level:
            level[scan] = 1 + max((depth(other) for other in anchors_below(scan, ready) & own), default=0)
        return level[scan]

    layers: dict[int, list[te.Tensor]] = {}
    for scan in scans:
        layers.setdefault(depth(scan), []).append(scan)
    found = []
    for _, members in sorted(layers.items()):
        groups: dict[Any, list[te.Tensor]] = {}
        for scan in members:
            groups.setdefault((scan_spec(scan.op).kind, str(scan.dtype), decay_of(scan)), []).append(scan)
        ordered = [scan for group in groups.values() for scan in group]
        below = [scan for scan in closure(ordered, kernel, ready) if scan not in set(ordered)]
        found.append(Stratum(tuple(ordered), tuple(below)))
    return found
