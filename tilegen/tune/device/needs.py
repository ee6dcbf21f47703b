"""What a candidate asks of a multiprocessor, read from the lowered function before anything is compiled.

Registers: a lowering keeps the values of a thread in local arrays (sums of the tensor cores, tiles on their way, elements of a walk).
The words of those that are in use at one place of the text, from their first use to their last, are the least that the compiler has to
keep; addresses and scalars come on top.  It can still do with fewer: it moves loads down to where they are needed, and computes again
what is cheap.  Of 303 launches of random candidates that nvcc 13.0 compiled for sm_75, sm_80 and sm_90, those without spills had at
most 1.27 words in arrays for each register that a thread can have; the 39 with more than `CROWDED` spilled 0.4 to 74 kB a thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm_ffi  # noqa: E402
from tvm import ir, tirx  # noqa: E402

from tilegen.expression.walkers import const_int  # noqa: E402
from tilegen.schedules.rule import Gpu  # noqa: E402

MAX_THREADS = 1024
MAX_REGISTERS = 255
CROWDED = 1.5
"""Words in arrays for each register of a thread beyond which a kernel spills whatever the compiler does."""

LEAST_WARPS = 2
"""Warps of a multiprocessor with which it has something to do while one waits; it has four schedulers."""

RESERVED = 1024
"""Bytes of shared memory that the system keeps of every block from capability 8.0 on."""

WARP = 32


@dataclass
class Need:
    """One launch of a function: `threads` of a block, words of each local array, and the places in the text of its first and last use."""

    threads: int
    sizes: dict[Any, float] = field(default_factory=dict)
    spans: dict[Any, list[int]] = field(default_factory=dict)

    @property
    def words(self) -> float:
        """Words in local arrays at the place of the text where they are the most."""
        events = [(at, grows, sign * self.sizes[array]) for array, span in self.spans.items()
                  for at, grows, sign in ((span[0], 0, 1), (span[1], 1, -1))]  # fmt: skip
        return max(accumulate(change for _, _, change in sorted(events, key=lambda e: e[:2])), default=0.0)


def needs_of(func: tirx.PrimFunc) -> list[Need]:
    """The launches of a lowered function (see `tilegen.plan.gpu.func`) in order."""
    found: list[Need] = []
    place = 0

    def attribute(node: Any) -> None:
        if node.attr_key == "thread_extent" and node.node.thread_tag == "threadIdx.x":
            found.append(Need(const_int(node.value) or 1))

    def allocation(node: Any) -> None:
        if found and node.buffer.scope() == "local":
            bits = int(re.sub(r"\D", "", str(node.buffer.dtype)) or 8)
            found[-1].sizes[node.buffer] = math.prod(const_int(n) or 0 for n in node.buffer.shape) * bits / 32

    def use(var: Any, kind: Any) -> None:
        nonlocal place
        place += 1
        if kind == tvm_ffi.DefRegionKind.NONE and found and var in found[-1].sizes:
            found[-1].spans.setdefault(var, [place, place])[1] = place

    callbacks = [(tirx.AttrStmt, attribute), (tirx.AllocBuffer, allocation)]
    tvm_ffi.structural_walk(func.body, callbacks, with_def_region_kind=[(ir.Var, use)], order="pre")
    return found


def beyond(launch: Mapping[str, Any], gpu: Gpu) -> str | None:
    """Why the device would refuse a launch, or None; sizes that depend on symbolic ones are left to it."""
    threads = math.prod(extent if isinstance(extent, int) else 1 for extent in launch["block"])
    if threads > MAX_THREADS:
        return f"{threads} threads in a block, at most {MAX_THREADS} can be"
    if isinstance(launch["shared"], int) and launch["shared"] > gpu.shared_bytes:
        return f"{launch['shared']} bytes of shared memory, a block has {gpu.shared_bytes}"
    return None


def hopeless(need: Need, launch: Mapping[str, Any], gpu: Gpu) -> str | None:
    """Why a launch that the device would take cannot be fast, or None."""
    most = min(MAX_REGISTERS, gpu.registers // need.threads // 8 * 8)
    if need.words > CROWDED * most:
        return f"{need.words:.0f} words in use at once, a thread of {need.threads} in a block has {most} registers"
    shared = launch["shared"] if isinstance(launch["shared"], int) else 0
    blocks = gpu.shared_total // max(1, shared + (RESERVED if gpu.capability >= 80 else 0))
    if blocks * need.threads < LEAST_WARPS * WARP:
        return f"{shared} bytes of shared memory for {need.threads} threads: a multiprocessor has room for {blocks} such blocks"
    return None
