"""Map on a CPU: rows in parallel, vectors along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilegen.schedules.llvm.lanes import lane_candidates
from tilegen.schedules.rule import Decide, View


class Map:
    """Independent points (a lone block "emit")."""

    name = "llvm.map"
    version = 1

    def fits(self, view: View) -> bool:
        """Only an "emit" block, over independent points."""
        return view.roles() == {"emit"}

    def apply(self, view: View, decide: Decide) -> None:
        """Fuse all axes but the last into tasks."""
        block = view.block("emit")
        vectorised(view, block, view.sch.get_loops(block), "", decide)


def vectorised(view: View, block: Any, loops: Sequence[Any], role: str, decide: Decide) -> None:
    """All axes but the last as tasks, vectors along the last; `role` tells the decisions of several blocks apart."""
    sch = view.sch
    *lead, last = loops
    extent = view.extent(last)
    if extent is None or extent == 1:
        sch.parallel(sch.fuse(*lead, last) if lead else last)
        return
    lanes, usual = lane_candidates(extent, view.itemsize(block), view.machine)
    lane = decide(f"{role}.lanes" if role else "lanes", lanes, usual)
    outer, lane_loop = sch.split(last, [None, lane])
    sch.parallel(sch.fuse(*lead) if lead else outer)
    sch.vectorize(lane_loop)
