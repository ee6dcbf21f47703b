"""Map on a CPU: rows in parallel, vectors along the last axis."""

from __future__ import annotations

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
        sch = view.sch
        block = view.block("emit")
        *lead, last = sch.get_loops(block)
        extent = view.extent(last)
        if extent is None or extent == 1:
            sch.parallel(sch.fuse(*lead, last) if lead else last)
            return
        lanes, usual = lane_candidates(extent, view.itemsize(block), view.machine)
        lane = decide("lanes", lanes, usual)
        outer, lane_loop = sch.split(last, [None, lane])
        sch.parallel(sch.fuse(*lead) if lead else outer)
        sch.vectorize(lane_loop)
