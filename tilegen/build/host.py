"""This machine's CPU as the folder name of its tuning records; imports no TVM."""

from __future__ import annotations

import functools
import os

from tilegen.bundle import machine

# Instruction sets of the x86-64 micro-architecture levels (x86-64 psABI), from the highest.
LEVELS = (
    ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("v3", {"avx2", "fma", "bmi1", "bmi2", "f16c"}),
    ("v2", {"sse4_2", "ssse3", "popcnt"}),
)


@functools.cache
def host_name() -> str:
    """ "x86_64-v4", "aarch64", ...: machines of one name share their tuning records."""
    arch = machine.arch()
    if arch != "x86_64":
        return arch
    flags = machine.flags()
    level = next((name for name, needed in LEVELS if needed <= flags), "v1")
    return f"{arch}-{level}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
