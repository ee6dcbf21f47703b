"""Which rule schedules a kernel: the first of the machine's list that fits."""

from __future__ import annotations

from typing import Any

from tilegen.errors import ScheduleError
from tilegen.schedules.cuda import contraction, convolution, map, reduce, scatter, tile, walk
from tilegen.schedules.llvm.map import Map
from tilegen.schedules.llvm.reduce import Reduce
from tilegen.schedules.llvm.scatter import Scatter
from tilegen.schedules.llvm.tile import Tile
from tilegen.schedules.llvm.walk import Walk
from tilegen.schedules.rule import Decide, DeviceRule, Rule, View


class Plain:
    """The planner's loops as they are: what runs when no rule's primitives apply."""

    name = "plain"
    version = 1

    def fits(self, view: View) -> bool:
        """Everything."""
        return True

    def apply(self, view: View, decide: Decide) -> None:
        """Nothing."""


PLAIN = Plain()

RULES: dict[str, list[Rule]] = {"llvm": [Tile(), Walk(), Scatter(), Map(), Reduce()]}


DEVICE_RULES: dict[str, list[Any]] = {
    "cuda": [*convolution.RULES, *contraction.RULES, *tile.RULES, *walk.RULES, *scatter.RULES, *reduce.RULES, *map.RULES]
}


def device_rule_for(kernel: Any, kind: str) -> DeviceRule:
    """The rule that decides the sizes of `kernel`, one of a plan, on a GPU of `kind`."""
    rule: DeviceRule
    for rule in DEVICE_RULES.get(kind, []):
        if rule.fits(kernel):
            return rule
    raise ScheduleError(f"no rule for '{kind}' fits kernel '{kernel.name}', a {kernel.pattern}")


def rule_for(view: View, kind: str) -> Rule:
    """The rule that schedules the kernel of `view` on a target of `kind`."""
    if kind not in RULES:
        raise ScheduleError(f"target kind is {kind!r}, must be one of {', '.join(sorted(RULES))}")
    for rule in RULES[kind]:
        if rule.fits(view):
            return rule
    raise ScheduleError(f"no rule for '{kind}' fits kernel '{view.kernel}'")


def by_name(name: str) -> Rule:
    """The rule called `name` ("llvm.walk")."""
    for rule in [*RULES.get(name.partition(".")[0], []), PLAIN]:
        if rule.name == name:
            return rule
    raise ScheduleError(f"there is no schedule rule '{name}'")
