"""Candidates for vector lanes and tiles along one static axis."""

from __future__ import annotations

from tilegen.schedules.rule import Machine, divisors

REGISTERS = (1, 2, 4)
"""Vector registers that one vectorised loop may span."""


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
    # Enough tasks for the cores even at batch 1, else as long a contiguous row as there is.
    enough = [tile for tile in tiles if extent // tile >= machine.cores]
    return tiles, max(enough) if enough else tiles[0]
