"""Tile kernel on a CPU: every loop nest of the tile on its own, contractions as register blocks.

A contraction keeps `rows` x `lanes` sums in vector registers while it runs over the reduced axes; everything else runs in
vectors along its last axis.  The task loop is the planner's: what is local to a task stays in its core's caches.
"""

from __future__ import annotations

from typing import Any

from tilegen.schedules.llvm.lanes import lane_candidates
from tilegen.schedules.rule import Decide, View, divisors

ROWS = [1, 2, 4, 6, 8]
"""Rows of a register block; with two vectors a row, eight rows fill half of the 32 registers of AVX-512."""


class Tile:
    """Loop nests of one task, one after another."""

    name = "llvm.tile"
    version = 1

    def fits(self, view: View) -> bool:
        """Kernels that the planner made of tiles."""
        return view.kernel.startswith("tile")

    def apply(self, view: View, decide: Decide) -> None:
        """Each block by what it is."""
        for role in view.in_order():
            if role.startswith("reduce"):
                reduction(view, role, decide)
            elif not role.startswith("scan"):
                pointwise(view, role, decide)


def pointwise(view: View, role: str, decide: Decide) -> None:
    """Vectors along the last axis."""
    block = view.block(role)
    loops = view.inner_loops(block)
    if not loops:
        return
    extent = view.extent(loops[-1])
    if extent is None or extent == 1:
        return
    lanes, usual = lane_candidates(extent, view.itemsize(block), view.machine)
    lane = decide(f"{role}.lanes", lanes, usual)
    _, inner = view.sch.split(loops[-1], [None, lane])
    view.sch.vectorize(inner)


def reduction(view: View, role: str, decide: Decide) -> None:
    """Register blocks of the result, the reduced axes inside."""
    sch, block = view.sch, view.block(role)
    loops = view.inner_loops(block)
    reduced = view.reduced(block)[-len(loops) :]
    over = [loop for loop, r in zip(loops, reduced, strict=True) if r]
    space = [loop for loop, r in zip(loops, reduced, strict=True) if not r]
    if not space or view.extent(space[-1]) in (None, 1):
        sch.decompose_reduction(block, over[0])
        return
    *lead, last = space
    lanes, usual = lane_candidates(view.extent(last), view.itemsize(block), view.machine)
    lane = decide(f"{role}.lanes", lanes, 2 * usual if 2 * usual in lanes else usual)
    columns, vector = sch.split(last, [None, lane])
    unrolled: list[Any] = []
    if lead and view.extent(lead[-1]):
        fitting = divisors(view.extent(lead[-1]), ROWS)
        rows = decide(f"{role}.rows", fitting, fitting[-1])
        outer, inner = sch.split(lead[-1], [None, rows])
        lead, unrolled = [*lead[:-1], outer], [inner]
    sch.reorder(*lead, columns, *over, *unrolled, vector)
    sums = sch.cache_write(block, 0, "local")
    sch.reverse_compute_at(sums, columns)
    sch.vectorize(vector)
    for loop in unrolled:
        sch.unroll(loop)
    _store(sch, sums, lane)
    init = sch.decompose_reduction(block, over[0])
    sch.vectorize(sch.get_loops(init)[-1])


def _store(sch: Any, sums: Any, lane: Any) -> None:
    _, inner = sch.split(sch.get_loops(sums)[-1], [None, lane])
    sch.vectorize(inner)
