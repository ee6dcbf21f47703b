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
HELD, WARP = 64, 32
"""Sums of a thread with which two blocks have registers, and threads of a warp."""
RESERVED = 1024
"""Bytes of shared memory that a block takes beside its own."""
NARROW = ("float16", "bfloat16")
BLOCK = 16
"""Rows and columns of the tensor cores' tiles."""


class Contraction:
    """Walks whose steps add products of tiles of memory to a state, on tensor cores."""

    name = "cuda.contraction"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern for tensor cores, in a narrow dtype or TF32, with one result: threads multiply the others."""
        if kernel.pattern != "tile" or len(kernel.anchors) != 1 or not kernel.only_products():
            return False
        return kernel.tf32 or any(str(t.dtype) in NARROW for t in [*kernel.memory, *kernel.emits])

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Eight warps that hold 64 x 32 of 128 x 128 each, the tiles of three steps, two blocks on a multiprocessor.

        A warp reads rows and columns of its part of the block: of the shapes of one size the squarest reads least.  Two blocks, where
        there are registers for both, keep the tensor cores busy while one of them begins or ends.
        """
        rows, columns = (const_int(n) or BLOCK for n in list(kernel.anchors[0].shape)[-2:])
        warps = decide("warps", WARPS, 8)
        possible = [n for n in ACROSS if columns % (BLOCK * n) == 0] or [1]
        across = decide("across", possible, min(reversed(possible), key=lambda n: rows * n / warps + columns / n))
        blocks = 2 if gpu.capability >= COPIES and rows * columns <= HELD * warps * WARP else 1
        nbytes = kernel.shared_bytes(gpu, 4, 1)
        room = [n for n in STAGES if n * nbytes <= gpu.shared_bytes] or [STAGES[0]]
        shared = [n for n in room if blocks * (n * nbytes + RESERVED) <= gpu.shared_total] or [room[0]]
        return {
            "parts": 1,
            "warps": warps,
            "prefetch": 2,
            "across": across,
            "stages": decide("stages", room, min(3, max(shared))),
            "resident": decide("resident", RESIDENT[:blocks], blocks),
        }


RULES = [Contraction()]
