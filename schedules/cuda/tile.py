"""Tile kernels on a GPU: how many warps share a tile, and whether a walk fetches the next step's tiles ahead."""

from __future__ import annotations

from typing import Any

from tilegen.schedules.rule import Decide, Gpu

WARPS = (1, 2, 4, 8)


class Tile:
    """Kernels that the planner made of tiles."""

    name = "cuda.tile"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "tile")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """A warp for every 16 rows of the tallest product, four by default: a row of a tile then lies within one warp."""
        made = {"warps": decide("warps", WARPS, 4)}
        if kernel.walked is not None:
            made["prefetch"] = decide("prefetch", (0, 1), 1)
        return made


RULES = [Tile()]
