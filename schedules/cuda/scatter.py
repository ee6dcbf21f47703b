"""Scatter-adds on a GPU: how many threads a block has."""

from __future__ import annotations

from typing import Any

from tilegen.expression.gather import scatter_spec
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
        """Large blocks where every element is a thread; small ones where columns are walked: they are few, and shall reach every
        multiprocessor."""
        spec = scatter_spec(kernel.anchors[0].op)
        return {"threads": decide("threads", THREADS, THREADS[-1] if spec is not None and spec.unique else 64)}


RULES = [Scatter()]
