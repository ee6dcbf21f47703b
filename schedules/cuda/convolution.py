"""Convolutions on a GPU with tensor cores: the tile of results that a block computes, and how far it goes between barriers."""

from __future__ import annotations

from typing import Any

from tilegen.expression.walkers import const_int
from tilegen.plan.convolutions import convolution
from tilegen.schedules.cuda.reduce import Reduce
from tilegen.schedules.cuda.walk import WalkStrip
from tilegen.schedules.rule import Decide, Gpu

ROWS = (16, 32, 64)
COLUMNS = (16, 32, 64, 128)
SPANS = (256, 512, 1024)
CHANNELS = (1, 2, 4, 8, 16)

CAPABILITY = 80
"""From which on tensor cores take the fragments that the lowering makes; before, a convolution is a reduction like others."""


class Convolution:
    """Sums over a position and a tap, in narrow floats: Toeplitz matrices on tensor cores."""

    name = "cuda.convolution"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Convolutions alone in their kernel, with channels along the last axis."""
        if kernel.pattern not in ("walk", "reduce") or not kernel.space or const_int(kernel.space[-1]) is None:
            return False
        narrow = any(str(t.dtype) in ("float16", "bfloat16") for t in [*kernel.loads, *kernel.writes()])
        return narrow and convolution(kernel) is not None

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """A warp a channel, 16 bytes of channels; 2048 results of each, or half of them where blocks have sequences to add up besides.

        Sixty-four rows: each column that is loaded meets as many.
        """
        if gpu.capability < CAPABILITY:
            strip = WalkStrip() if kernel.pattern == "walk" else Reduce()
            return strip.decide(kernel, gpu, decide)
        extent = const_int(kernel.space[-1])
        assert extent is not None
        few = len(kernel.space) < 3  # positions and channels alone
        return {
            "rows": decide("rows", ROWS, 64),
            "columns": decide("columns", COLUMNS, 16 if few else 32),
            "span": decide("span", SPANS, 1024),
            "channels": decide("channels", CHANNELS, min(8, 1 << (extent - 1).bit_length())),
        }


RULES = [Convolution()]
