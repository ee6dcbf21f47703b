"""Walks on a GPU: how many channels and steps are a thread's, and how many groups of steps a block works on at once.

A block owns `channels` neighbouring channels and goes along the axis in rounds of `groups` x `steps` steps; with one group a
thread walks its channels alone.
"""

from __future__ import annotations

from typing import Any

from tilegen.expression.walkers import const_int
from tilegen.plan.gpu.walk_strata import reductions_of, scans_of
from tilegen.schedules.rule import Decide, Gpu

CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (1, 2, 4)
STEPS = (1, 2, 4, 8, 16)
GROUPS = (1, 2, 4, 8, 16, 32, 64)

SECTOR = 32
"""Channels of a block: with two bytes each, two sectors of memory in every row of every tensor."""


def lanes(kernel: Any) -> int | None:
    """Channels along the last axis, if their number is static."""
    return const_int(kernel.space[-1]) if kernel.space else None


def channels(kernel: Any, most: int) -> int:
    """Channels of a block: a power of two, no more than there are."""
    extent = lanes(kernel)
    if extent is None:
        return 1
    return min(most, 1 << (extent - 1).bit_length())


def width(kernel: Any, most: int) -> int:
    """Channels of a thread: no more than `most`, and a divisor of their number."""
    extent = lanes(kernel)
    return 1 if extent is None else max(w for w in WIDTHS if w <= most and extent % w == 0)


class Walk:
    """All groups of a round at once, states exchanged in shared memory: walks with few points and many steps."""

    name = "cuda.walk"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Walks with at most one symbolic axis beside the walked one."""
        return bool(kernel.pattern == "walk") and sum(const_int(n) is None for n in kernel.space) < 2

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Registers decide: the fewer states there are, the more channels and steps a thread takes."""
        states = len(scans_of(kernel))
        sums = len(reductions_of(kernel))
        across = decide("channels", CHANNELS, channels(kernel, SECTOR))
        most = 2 if states + sums <= 8 else 1
        wide = decide("width", WIDTHS, min(width(kernel, most), across))
        return {
            "channels": across,
            "width": wide,
            "steps": decide("steps", STEPS, 8 if states + sums <= 16 else 4),
            "groups": decide("groups", GROUPS, 32 if across >= SECTOR else 64),
            "ahead": decide("ahead", (0, 1), 1 if states + sums <= 16 else 0),
        }


class WalkPlain:
    """A thread walks its channels alone: walks with many points, or few steps."""

    name = "cuda.walk_plain"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """All walks."""
        return bool(kernel.pattern == "walk")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """A warp or more of neighbouring channels."""
        states = len(scans_of(kernel)) + len(reductions_of(kernel))
        across = decide("channels", CHANNELS, channels(kernel, 128))
        return {
            "channels": across,
            "width": decide("width", WIDTHS, min(width(kernel, 2 if states <= 8 else 1), across)),
            "steps": decide("steps", STEPS, 8 if states <= 8 else 4),
            "groups": 1,
            "ahead": 0,
        }


RULES = [Walk(), WalkPlain()]
