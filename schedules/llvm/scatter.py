"""Scatter-add on a CPU: columns in parallel, each task adds all rows in their order.

    parallel  all axes but that of the rows and the last; vectors of the last one
      serial  rows
        vector  `lanes` elements

Rows that never meet are tasks too, and whole rows are one stream.
"""

from __future__ import annotations

from typing import Any

from tilegen.schedules.llvm.lanes import lane_candidates, tile_candidates
from tilegen.schedules.llvm.map import vectorised
from tilegen.schedules.rule import APART, ROWS, UNORDERED, Decide, View


class Scatter:
    """Zeros (a block "zero") and rows added at data-dependent places (a block "add")."""

    name = "llvm.scatter"
    version = 1

    def fits(self, view: View) -> bool:
        """Only these two blocks."""
        return view.roles() == {"zero", "add"}

    def apply(self, view: View, decide: Decide) -> None:
        """The zeros as a map; rows in their order inside a task, unless they never meet."""
        sch = view.sch
        zero, add = view.block("zero"), view.block("add")
        vectorised(view, zero, sch.get_loops(zero), "zero", decide)
        loops: list[Any] = list(sch.get_loops(add))
        annotations = sch.get(add).annotations
        rows = int(annotations[ROWS])
        apart = bool(int(annotations[APART]))
        if int(annotations[UNORDERED]):
            if apart:
                sch.parallel(sch.fuse(*loops) if len(loops) > 1 else loops[0])
            else:
                vectorised(view, add, loops, "add", decide)
            return
        row = loops.pop(rows)
        if not loops:
            return
        *lead, last = loops
        extent = view.extent(last)
        if apart or extent is None or extent == 1:
            sch.reorder(*loops, row)
            sch.parallel(sch.fuse(*loops) if lead else last)
            return
        lanes, usual = lane_candidates(extent, view.itemsize(add), view.machine)
        tiles, usual_tile = tile_candidates(extent, lanes, view.machine)
        lane, tile = decide("add.lanes", lanes, usual), decide("add.tile", tiles, usual_tile)
        outer, inner = sch.split(last, [None, tile])
        vectors, lane_loop = sch.split(inner, [None, lane])
        sch.reorder(*lead, outer, row, vectors, lane_loop)
        sch.parallel(sch.fuse(*lead, outer) if lead else outer)
        sch.vectorize(lane_loop)
