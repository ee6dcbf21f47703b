"""Walks on a GPU: how many channels and steps are a thread's, and how many groups of steps a block works on at once.

A block owns `channels` neighbouring channels and goes along the axis in rounds of `groups` x `steps` steps; with one group a
thread walks its channels alone.
"""

from __future__ import annotations

import math
from typing import Any

from tilegen.expression.scan import scan_inputs
from tilegen.expression.walkers import const_int, is_load
from tilegen.plan import stages
from tilegen.plan.gpu.walk_reads import STEADY_REGISTERS
from tilegen.plan.gpu.walk_strata import reductions_of, scans_of
from tilegen.schedules.rule import Decide, Gpu, dtype_bytes

CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (1, 2, 4)
STEPS = (1, 2, 4, 8, 16)
AHEAD = (0, 1, 2)
STRIPS = (1, 2, 4, 8)
GROUPS = (1, 2, 4, 8, 16, 24, 32, 64)

THREADS = 256
OWN = 45
"""Registers for addresses and intermediate values."""
SPARE = 12
"""Registers of a thread that the estimate leaves free."""

MOST = 32
"""Channels of a block: with two bytes each, two sectors of memory in every row of every tensor."""
SECTOR = 32
"""Bytes that memory moves at the least."""
BATCH = 4
"""What an axis of points whose size is not known is taken for."""


def lanes(kernel: Any) -> int | None:
    """Channels along the last axis, if their number is static."""
    return const_int(kernel.space[-1]) if kernel.space else None


def channels(kernel: Any, most: int) -> int:
    """Channels of a block: a power of two, no more than there are."""
    extent = lanes(kernel)
    if extent is None:
        return 1
    return min(most, 1 << (extent - 1).bit_length())


def spread(kernel: Any, gpu: Gpu) -> int:
    """Channels of a block: half of the most where blocks would leave half of the processors without work, and rows still fill sectors."""
    narrowest = min((dtype_bytes(str(t.dtype)) for t in kernel.loads if t.shape), default=4)
    across = channels(kernel, MOST)
    points = math.prod(const_int(n) or BATCH for n in kernel.space)
    few = across * gpu.processors > 2 * points
    return across // 2 if few and across // 2 * narrowest >= SECTOR else across


def width(kernel: Any, most: int) -> int:
    """Channels of a thread: no more than `most`, and a divisor of their number."""
    extent = lanes(kernel)
    return 1 if extent is None else max(w for w in WIDTHS if w <= most and extent % w == 0)


def moving(kernel: Any) -> list[Any]:
    """What a walk reads at every step."""
    return [t for t in kernel.loads if any(const_int(n) is None for n in t.shape)]


def registers(kernel: Any, wide: int, steps: int, ahead: int) -> float:
    """About how many registers a thread needs, within a tenth of what nvcc used for walks of 6 to 64 states.

    Every state twice (where the group starts, and as it runs), coefficients, the elements of a group (twice with the next
    round's), and a third of what is added to states, which nvcc keeps from one pass over the group to the next.
    """
    scans, sums = scans_of(kernel), reductions_of(kernel)
    moves = moving(kernel)
    words = sum(max(dtype_bytes(str(t.dtype)), 4 // wide) for t in moves) / 4
    steady = sum(math.prod(const_int(n) or 1 for n in t.shape[:-1]) for t in kernel.loads if t not in moves) if scans else 0
    terms = {scan_inputs(scan.op)["x"] for scan in scans}
    added = sum(stages.kind(x) == "map" and not is_load(stages.body(x)) for x in terms)
    states = 2 * len(scans) + 2 * len(sums) + 1
    held = min(wide * steady, STEADY_REGISTERS)
    return OWN + wide * states + held + steps * wide * (words * (1 + ahead) + (added + 1) / 3)


class Walk:
    """All groups of a round at once, states exchanged in shared memory: walks with few points and many steps."""

    name = "cuda.walk"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Walks with at most one symbolic axis beside the walked one."""
        return bool(kernel.pattern == "walk") and sum(const_int(n) is None for n in kernel.space) < 2

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """As many channels and steps for a thread as its registers hold, the next round's elements among them; 256 threads."""
        across = decide("channels", CHANNELS, spread(kernel, gpu))
        room = gpu.registers / THREADS - SPARE
        sizes = ((2, 8), (2, 4), (1, 8), (1, 4), (1, 2))
        possible = [(w, u) for w, u in sizes if w <= min(width(kernel, 2), across)]
        usual, steps = next((size for size in possible if registers(kernel, *size, 1) <= room), possible[-1])
        wide = decide("width", WIDTHS, usual)
        # Walks without scans hold little and never wait for each other: more of them hide more of the memory's latency.
        threads = THREADS if scans_of(kernel) or registers(kernel, usual, steps, 1) > room / 2 else 2 * THREADS
        groups = max(g for g in GROUPS if g == 1 or (g * across <= threads * usual and g != 24))
        if kernel.once:
            groups = min(groups, 2)  # of which the others would wait for the first
        return {
            "channels": across,
            "width": wide,
            "steps": decide("steps", STEPS, steps),
            "groups": decide("groups", GROUPS, groups),
            "ahead": decide("ahead", AHEAD, 2 if len(moving(kernel)) > 1 else 1),
        }


class WalkStrip:
    """Reductions of many points: a thread has a strip of results that share what they read (a convolution)."""

    name = "cuda.walk_strip"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Walks that only add up, at points of several axes."""
        bare = not scans_of(kernel) and not kernel.emits and not kernel.latches if kernel.pattern == "walk" else False
        return bool(bare and lanes(kernel) is not None and len(kernel.space) > 1)

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Eight results along the axis before the last, two channels, two warps of channels."""
        wide = decide("width", WIDTHS, width(kernel, 2 if len(reductions_of(kernel)) == 1 else 1))
        return {
            "width": wide,
            "lanes": decide("lanes", CHANNELS, max(1, channels(kernel, 64 * wide) // wide)),
            "groups": 1,
            "strip": decide("strip", STRIPS, 8 if len(reductions_of(kernel)) == 1 else 2),
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


class Retrace:
    """Walks there and back: all groups of a span between two marks at once."""

    name = "cuda.retrace"
    version = 1

    def fits(self, kernel: Any) -> bool:
        """Kernels of the pattern."""
        return bool(kernel.pattern == "retrace")

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """Two channels a thread, and the steps that make 256 threads of a block."""
        across = decide("channels", CHANNELS, spread(kernel, gpu))
        wide = decide("width", WIDTHS, min(width(kernel, 2), across))
        usual = max(u for u in STEPS if u == 1 or kernel.marks.every // u * across >= THREADS * wide)
        return {
            "channels": across,
            "width": wide,
            "steps": decide("steps", STEPS, usual),
            "ahead": decide("ahead", AHEAD, 2),
        }


RULES = [Walk(), WalkStrip(), WalkPlain(), Retrace()]
