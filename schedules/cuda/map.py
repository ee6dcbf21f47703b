"""Maps on a GPU: how many neighbouring elements a thread computes."""

from __future__ import annotations

from typing import Any

from tilegen.expression.walkers import const_int
from tilegen.schedules.rule import Decide, Gpu, dtype_bytes

WIDTHS = (1, 2, 4, 8)
THREADS = (64, 128, 256, 512)
LOAD = 16
"""Bytes of the widest load."""


class Map:
    """Points that do not depend on each other."""

    name = "cuda.map"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "map")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """As many elements as one load of the narrowest result takes and the last axis divides into."""
        extent = const_int(kernel.space[-1]) if kernel.space else None
        narrow = min(dtype_bytes(str(tensor.dtype)) for tensor in kernel.emits)
        most = min(LOAD // narrow, 8)
        usual = 1 if extent is None else max(w for w in WIDTHS if w <= most and extent % w == 0)
        return {"width": decide("width", WIDTHS, usual), "threads": decide("threads", THREADS, 256)}


RULES = [Map()]
