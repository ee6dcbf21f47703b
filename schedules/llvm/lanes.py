"""Candidates for vector lanes and tiles along one static axis."""

from __future__ import annotations

from tilegen.schedules.rule import Machine, divisors

REGISTERS = (1, 2, 4)
"""Vector registers that one vectorised loop may span."""

USUAL_BATCH = 4
"""Sequences that a default reckons with; the batch is symbolic."""

TASKS_PER_CORE = 2
"""Tasks that keep a core busy to the end."""


def lane_candidates(extent: int, itemsize: int, machine: Machine) -> tuple[list[int], int]:
    """(candidates, default) for the lanes of a vectorised loop over an axis of `extent` elements.

    Widths that do not divide the extent would need a mask on every lane; an odd extent is one vector as it is.
    """
    width = max(1, machine.vector_bytes // itemsize)
    wanted = sorted({width * count for count in REGISTERS} | {max(1, width // 2), max(1, width // 4)})
    fitting = [lanes for lanes in divisors(extent, wanted) if lanes > 1]
    if fitting:
        return fitting, width if width in fitting else fitting[-1]
    best = max(d for d in range(1, min(extent, width * REGISTERS[-1]) + 1) if extent % d == 0)
    return [best], best


def tile_candidates(extent: int, lanes: list[int], machine: Machine) -> tuple[list[int], int]:
    """(candidates, default) for the part of an axis that one task walks, a multiple of every candidate of `lanes`."""
    widest = max(lanes)
    tiles = sorted(d for d in range(widest, extent + 1, widest) if extent % d == 0)
    if any(widest % other for other in lanes):
        tiles = [extent]
    # A whole row is read as one stream, which memory likes best: as long a tile as leaves every core its tasks.
    enough = [tile for tile in tiles if USUAL_BATCH * (extent // tile) >= TASKS_PER_CORE * machine.cores]
    return tiles, max(enough) if enough else tiles[0]
