"""Walk on a CPU: a task owns a row of a tile, all states of the tile stay in registers or the first-level cache.

    parallel  leading space axes and tiles of the last one
      serial  blocks of `steps` along the walk
        serial  vectors of the tile
          serial  the steps of the block
            vector  `lanes` elements
"""

from __future__ import annotations

from tilegen.schedules.llvm.lanes import lane_candidates, tile_candidates
from tilegen.schedules.rule import Decide, View

STEPS = [1, 2, 4, 8, 16, 32]


class Walk:
    """States advanced along one axis (block "upd" with a reduced last loop), written as they go ("emit") or at the end ("end")."""

    name = "llvm.walk"
    version = 1

    def fits(self, view: View) -> bool:
        """A walk has its reduction block's only reduced loop innermost."""
        if "upd" not in view.roles() or not view.kernel.startswith("walk"):
            return False
        reduced = view.reduced(view.block("upd"))
        return reduced[-1] and not any(reduced[:-1])

    def apply(self, view: View, decide: Decide) -> None:
        """Tile, reorder, vectorise before the initialisation is split off (a block without it may not be vectorised)."""
        sch, roles = view.sch, view.roles()
        upd = view.block("upd")
        *lead, last, time = sch.get_loops(upd) if len(sch.get_loops(upd)) > 1 else [None, *sch.get_loops(upd)]
        if last is None:
            sch.decompose_reduction(upd, time)
            return
        extent = view.extent(last)
        if extent is None or extent == 1:
            task = sch.fuse(*lead, last) if lead else last
            sch.parallel(task)
            if "end" in roles:
                sch.reverse_compute_at(view.block("end"), task)
            sch.decompose_reduction(upd, time)
            return
        lanes, usual = lane_candidates(extent, view.itemsize(upd), view.machine)
        tiles, usual_tile = tile_candidates(extent, lanes, view.machine)
        lane = decide("lanes", lanes, usual)
        tile = decide("tile", tiles, usual_tile)
        steps = decide("steps", STEPS, 1)
        outer, inner = sch.split(last, [None, tile])
        vectors, lane_loop = sch.split(inner, [None, lane])
        blocks, step = sch.split(time, [None, steps])
        sch.reorder(*lead, outer, blocks, vectors, step, lane_loop)
        task = sch.fuse(*lead, outer) if lead else outer
        sch.parallel(task)
        sch.vectorize(lane_loop)
        if "end" in roles:
            end = view.block("end")
            sch.reverse_compute_at(end, task)
            _, lane_end = sch.split(sch.get_loops(end)[-1], [None, lane])
            sch.vectorize(lane_end)
        init = sch.decompose_reduction(upd, blocks)
        sch.vectorize(sch.get_loops(init)[-1])
