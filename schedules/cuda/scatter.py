"""Scatter-adds on a GPU: how many threads a block has."""

from __future__ import annotations

from typing import Any

from tilegen.schedules.rule import Decide, Gpu

THREADS = (32, 64, 128, 256, 512)


class Scatter:
    """Rows of one tensor added at data-dependent places of another."""

    name = "cuda.scatter"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "scatter")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Small blocks: columns that are walked are few, and shall reach every multiprocessor."""
        return {"threads": decide("threads", THREADS, 64)}


RULES = [Scatter()]
