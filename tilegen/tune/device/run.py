"""``tilegen tune`` on a GPU: the operators and their functions to one search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tilegen.build.target import BuildTarget
from tilegen.errors import ArgumentError
from tilegen.mechanisms import Instance
from tilegen.tune.device.driver import ORDINAL
from tilegen.tune.device.operators import STEP, Request
from tilegen.tune.device.search import Fleet
from tilegen.tune.engine import Effort
from tilegen.tune.local import Limits, Workshop
from tilegen.tune.progress import Progress
from tilegen.tune.report import TuneReport

LIMITS = Limits(build=45.0, measure=20.0, whole=180.0)
RECYCLE = 400
"""Builds after which a process is replaced."""


def tune_device(
    instances: Sequence[Instance],
    target: BuildTarget,
    *,
    devices: Sequence[int],
    shapes: Mapping[str, int],
    functions: Sequence[str],
    effort: Effort,
    deadline: float,
    log_dir: Path,
    resume: bool,
    seed: int,
    progress: Progress,
) -> TuneReport:
    """Search the kernels of `instances` on the GPUs numbered `devices`, all of the kind of `target`; see `tilegen.tune.run.tune`."""
    begun = time.monotonic()
    if unknown := set(functions) - {"forward", "backward", STEP}:
        raise ArgumentError(f"functions has {', '.join(sorted(unknown))}, must be of forward, backward, step")
    work: list[Request] = []
    for instance in instances:
        if set(functions) - {STEP}:
            work.append(Request(instance, shapes))
        step = instance.step_instance() if STEP in functions else None
        if step is not None:
            work.append(Request(step, shapes, step=True))
    places = {f"GPU {number}": {ORDINAL: str(number)} for number in devices}
    with Workshop(target.tvm, limits=LIMITS, places=places) as workshop:
        for pool in (workshop.builders, *workshop.meters.values()):
            pool.recycle = RECYCLE
        fleet = Fleet(workshop, effort, deadline=deadline, log_dir=log_dir, resume=resume, seed=seed, progress=progress)
        results = fleet.search(work, target)
    took = time.monotonic() - begun
    return TuneReport(results, took, fleet.skipped, target.device, fleet.bandwidth, fleet.meters.trials())
