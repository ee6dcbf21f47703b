"""Reductions on a CPU: rows of the result in parallel, vectors along its last axis where there is one."""

from __future__ import annotations

from tilegen.schedules.llvm.lanes import lane_candidates
from tilegen.schedules.rule import Decide, View


class Reduce:
    """Any reduction; never fails, so that nothing is unschedulable."""

    name = "llvm.reduce"
    version = 1

    def fits(self, view: View) -> bool:
        """Any kernel with a reduction block."""
        return "upd" in view.roles()

    def apply(self, view: View, decide: Decide) -> None:
        """Reduced loops between the rows and the vectors of the result."""
        sch, roles = view.sch, view.roles()
        upd = view.block("upd")
        loops = sch.get_loops(upd)
        reduced = view.reduced(upd)
        space = [loop for loop, r in zip(loops, reduced, strict=True) if not r]
        over = [loop for loop, r in zip(loops, reduced, strict=True) if r]
        if not space:
            sch.decompose_reduction(upd, over[0])
            return
        *lead, last = space
        extent = view.extent(last)
        if extent is None or extent == 1:
            task = sch.fuse(*space) if len(space) > 1 else last
            sch.parallel(task)
            if "end" in roles:
                sch.reverse_compute_at(view.block("end"), task)
            sch.decompose_reduction(upd, over[0])
            return
        lanes, usual = lane_candidates(extent, view.itemsize(upd), view.machine)
        lane = decide("lanes", lanes, usual)
        outer, lane_loop = sch.split(last, [None, lane])
        sch.reorder(*lead, outer, *over, lane_loop)
        task = sch.fuse(*lead, outer) if lead else outer
        sch.parallel(task)
        sch.vectorize(lane_loop)
        if "end" in roles:
            end = view.block("end")
            sch.reverse_compute_at(end, task)
            sch.vectorize(sch.get_loops(end)[-1])
        init = sch.decompose_reduction(upd, over[0])
        sch.vectorize(sch.get_loops(init)[-1])
