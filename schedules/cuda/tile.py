"""Tile kernels on a GPU: how many warps share a tile, and whether a walk fetches the next step's tiles ahead."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from tilegen.expression.walkers import const_int
from tilegen.schedules.rule import Decide, Gpu

WARPS = (1, 2, 4, 8)
PARTS = (1, 2, 4, 8)
PREFETCH = (0, 1, 2)
"""Not at all, to registers, or to shared memory where a tile is copied as it is."""
STAGES = (2, 3, 4)
"""Steps of which shared memory holds tiles, if it has room for so many."""
AHEAD = 44
"""Registers of a thread that tiles may take on their way."""
NARROWEST = 32
"""Columns of a result that are worth a block of their own: what all parts need is computed by each of them."""
STATE = 32 * 64
"""Elements of states that a warp holds without crowding its registers."""
LARGE = 4 * STATE
"""Elements of states beyond which results get kernels of their own; with half of it in a block registers are short for loads ahead."""
MOST = 4
"""Parts beyond which what all of them read and compute outweighs what they share out."""


class Tile:
    """Kernels that the planner made of tiles."""

    name = "cuda.tile"
    version = 2

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "tile")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Results by kernels of their own; parts of the results; warps of a block; whether a walk fetches ahead.

        A walk has a block for every sequence and head, which rarely fill the card: they share out their results.  Where each step is
        a few products, four warps keep the scores between them in registers; where threads compute, more of them hide what one
        waits for, and eight where a product of two tiles of memory is all there is.  Where tiles of the sequence are blocks too there
        are enough of them, and where their number is known parts make up for what is missing.
        """
        walks = kernel.walked is not None
        side_by_side = [n for k, n in enumerate(kernel.space) if k != kernel.walked]
        few = walks and all(const_int(n) is not None or isinstance(n, tirx.Var) for n in side_by_side)
        blocks = math.prod(const_int(n) or 0 for n in side_by_side)
        made: dict[str, Any] = {}
        # Two results of a walk rarely share an axis of columns; where states are large, those and the scores of both crowd a block.
        alone = walks and kernel.separable() and kernel.multiplies(gpu)
        apart = bool(decide("apart", (0, 1), int(kernel.state_elements() > LARGE))) if alone else False
        extent = kernel.shared_axis(apart)
        possible = [n for n in PARTS if extent % (16 * n) == 0] or [1]
        parts = [n for n in possible if kernel.shared_bytes(gpu, 4, n, apart) <= gpu.shared_bytes] or possible
        fair = [n for n in parts if n <= MOST and extent // n >= NARROWEST] or [min(parts)]
        enough = [n for n in fair if blocks * n >= gpu.processors] or [max(fair)]
        made["parts"] = decide("parts", parts, min(enough) if few else min(parts))
        crowded = walks and kernel.state_elements(apart) // made["parts"] > LARGE
        made["warps"] = decide(
            "warps", WARPS, 8 if walks and (crowded or kernel.only_products() or not kernel.multiplies(gpu)) else 4
        )
        # Walks enough for half of the multiprocessors take no second part: both would share a multiprocessor, and read all twice.
        half = gpu.processors // 2 + 1
        shares = few and made["parts"] > 1 and kernel.multiplies(gpu) and kernel.shared_bytes(gpu, 8, 1) * 2 <= gpu.shared_bytes
        # A block that has a multiprocessor to itself has its shared memory too.
        alone_there = shares and (half - 1) * made["parts"] <= gpu.processors
        if walks:
            usual = 2 if alone_there else ahead(kernel, made["warps"], made["parts"], apart)
            made["prefetch"] = decide("prefetch", PREFETCH, usual)
            made["stages"] = decide("stages", STAGES, STAGES[-1] if alone_there else STAGES[0])
        if alone:
            made["apart"] = int(apart)
        if shares:
            made["whole"] = decide("whole", (0, half), half)
            if made["whole"]:
                room = [n for n in STAGES if 2 * n * kernel.shared_bytes(gpu, 8, 1) <= gpu.shared_total] or [STAGES[0]]
                # Operands of 32 bits take twice the registers of those of 16.
                crowded = kernel.state_elements() > LARGE or kernel.tf32
                made["whole_warps"] = decide("whole_warps", (4, 8), 8 if crowded else 4)
                made["whole_prefetch"] = decide("whole_prefetch", PREFETCH, 2)
                made["whole_stages"] = decide("whole_stages", STAGES, max(room))
        return made


def ahead(kernel: Any, warps: int, parts: int, apart: bool) -> int:
    """How tiles of a walk are fetched ahead: by way of registers where a thread has enough of them for tiles and states."""
    if kernel.state_elements(apart) // parts >= LARGE // 2:
        return 2
    return 1 if kernel.loaded_bytes(parts, apart) <= AHEAD * 4 * 32 * warps else 2


RULES = [Tile()]
