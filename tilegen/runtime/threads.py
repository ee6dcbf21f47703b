"""How many threads compiled CPU code uses.

TVM's thread pool takes half of the logical processors, on the assumption that two of them share a core, and binds thread i to
processor i.  On machines without hyper-threading half of the cores would idle, and several processes would share a few
cores.  Here it gets the cores that this process may use, and binds nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def configure() -> None:
    """Set ``TVM_NUM_THREADS`` and ``TVM_BIND_THREADS`` for this process and its children, unless the user has set them.

    ``OMP_NUM_THREADS`` counts as set by the user.  TVM reads them when it first runs a parallel loop in a thread.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("TVM_NUM_THREADS", str(cores()))


def cores() -> int:
    """The number of physical cores that this process may use: by affinity, and by the container's quota."""
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(len({_core(i) for i in processors}), _quota()))


def _core(processor: int) -> str:
    """A name that processors of one core share; the processor's own where the kernel does not tell."""
    try:
        return (_TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _quota() -> int:
    try:
        limit, period = _QUOTA.read_text().split()
        return -(-int(limit) // int(period))
    except (OSError, ValueError):  # no cgroup, or "max"
        return os.cpu_count() or 1
