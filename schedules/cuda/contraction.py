"""Matrix products in blocks on a GPU: how warps share a block of the result, and how far ahead its operands are fetched."""

from __future__ import annotations

from typing import Any

from tilegen.expression.walkers import const_int
from tilegen.schedules.rule import Decide, Gpu

WARPS = (4, 8)
ACROSS = (1, 2, 4)
STAGES = (2, 3, 4)
RESIDENT = (1, 2)
COPIES = 80
"""The capability from which tiles are copied past registers; before, a thread needs more of these."""
NARROW = ("float16", "bfloat16")
BLOCK = 16
"""Rows and columns of the tensor cores' tiles."""


class Contraction:
    """Walks whose steps add products of tiles of memory to a state, on tensor cores."""

    name = "cuda.contraction"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern with a narrow dtype in memory, and one result: threads multiply the others."""
        if kernel.pattern != "tile" or len(kernel.anchors) != 1 or not kernel.only_products():
            return False
        return any(str(t.dtype) in NARROW for t in [*kernel.memory, *kernel.emits])

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Eight warps that hold 64 x 32 of 128 x 128 each, the tiles of three steps, two blocks on a multiprocessor.

        A warp reads rows and columns of its part of the block: of the shapes of one size the squarest reads least.  Two blocks keep the
        tensor cores busy while one of them begins or ends.
        """
        columns = const_int(kernel.anchors[0].shape[-1]) or BLOCK
        warps = decide("warps", WARPS, 8)
        possible = [n for n in ACROSS if columns % (BLOCK * n) == 0] or [1]
        across = decide("across", possible, max(n for n in possible if n <= warps // 2))
        nbytes = kernel.shared_bytes(gpu, 4, 1)
        room = [n for n in STAGES if n * nbytes <= gpu.shared_bytes] or [STAGES[0]]
        shared = [n for n in room if 2 * n * nbytes <= gpu.shared_total] or [room[0]]
        return {
            "parts": 1,
            "warps": warps,
            "prefetch": 2,
            "across": across,
            "stages": decide("stages", room, min(3, max(shared))),
            "resident": decide("resident", RESIDENT, 2 if gpu.capability >= COPIES else 1),
        }


RULES = [Contraction()]
