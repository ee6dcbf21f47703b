"""Reductions on a GPU: how many neighbouring results a block computes, and how many threads share one."""

from __future__ import annotations

import math
from typing import Any

from tilegen.expression.walkers import const_int
from tilegen.plan import stages
from tilegen.schedules.rule import Decide, Gpu, dtype_bytes

WIDTHS = (1, 2, 4, 8)
LANES = (1, 2, 4, 8, 16, 32, 64, 128)
GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
THREADS = 512
MANY, RESULTS = 4, 1 << 14
"""Results of a thread, and how many there must be, where every sum is a thread's."""
STRIPS = (1, 2, 4, 8)
SECTOR = 32
"""Bytes that memory moves at the least."""


class Reduce:
    """Reductions over their own axes."""

    name = "cuda.reduce"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "reduce")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Few results of long sums get whole blocks; many results of short sums a thread each."""
        extent = const_int(kernel.space[-1]) if kernel.space else None
        over = [const_int(axis.dom.extent) for axis in stages.reduce_axes(kernel.anchors[0])]
        many = any(const_int(n) is None for n in kernel.space)
        short = all(n is not None for n in over)
        results = math.prod(const_int(n) or 1 for n in kernel.space)
        if short and not many and extent is not None and extent % MANY == 0 and results >= RESULTS and len(kernel.anchors) == 1:
            # So many results that each has a thread, which reads whole vectors.
            lanes = min(LANES[-1], 1 << (extent // MANY - 1).bit_length())
            return {
                "width": decide("width", WIDTHS, MANY), "lanes": decide("lanes", LANES, lanes), "groups": decide("groups", GROUPS, 1),
                "strip": decide("strip", (1,), 1),
            }  # fmt: skip
        most = 2 if len(kernel.anchors) <= 4 else 1
        wide = decide("width", WIDTHS, 1 if extent is None else max(w for w in WIDTHS if w <= most and extent % w == 0))
        usual = 1 if extent is None else min(16, 1 << (max(extent // wide, 1) - 1).bit_length())
        if extent is not None and len(kernel.space) == 1 and not short:
            # Long sums of few results: narrower blocks, while there are processors for more, and rows still have half a sector.
            narrowest = min((dtype_bytes(str(t.dtype)) for t in kernel.loads if t.shape), default=4)
            while usual * wide * narrowest > SECTOR // 2 and 2 * -(-extent // (usual * wide)) <= gpu.processors:
                usual //= 2
        lanes = decide("lanes", LANES, usual)
        # Results along another axis share what they read, unless there are too many sums to hold for each of them.
        strips = 8 if extent is not None and len(kernel.space) > 1 and len(kernel.anchors) == 1 and not short else 1
        threads = THREADS if strips == 1 else THREADS // 2
        groups = min(GROUPS[-1], threads // lanes) if not short else max(1, 32 // lanes) if many else 32
        return {
            "width": wide,
            "lanes": lanes,
            "groups": decide("groups", GROUPS, groups),
            "strip": decide("strip", STRIPS if extent is not None and len(kernel.space) > 1 else (1,), strips),
        }


RULES = [Reduce()]
