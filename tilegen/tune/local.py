"""Building and measuring candidates in warm processes on this machine.

Builds and measurements take turns: on a CPU a compiler running beside a kernel takes a core and memory bandwidth from it,
and on two cores that is half of what is measured.  A device that is not the CPU measures while the next candidates are
built (`overlap`).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tilegen.tune.builder import SYMBOL, compile_to

# isort: split
import tvm

from tilegen.build.host import cores
from tilegen.errors import BuildError, ScheduleError
from tilegen.tune.case import Argument, Case
from tilegen.tune.engine import Candidate
from tilegen.tune.gate import Array, dtype_of, limit_around, limit_for
from tilegen.tune.journal import OK, Outcome
from tilegen.tune.pool import Job, Pool, Reply
from tilegen.tune.space import Decisions, Space
from tilegen.tune.task import Task


@dataclass(frozen=True)
class Backend:
    """Where candidates run: the functions called in measuring and building processes, and whether building disturbs measuring.

    `describe`, `build`, `prepare` and `check` are what a device that is not the CPU is given operators, candidates and cases by
    (`tilegen.tune.device.search`).
    """

    setup: str = "tilegen.tune.measure:setup"
    measure: str = "tilegen.tune.measure:measure"
    rank: str = "tilegen.tune.measure:rank"
    outputs: str = "tilegen.tune.measure:outputs"
    copy_bandwidth: str = "tilegen.tune.measure:copy_bandwidth"
    build_setup: str = "tilegen.tune.builder:setup"
    describe: str = ""
    build: str = ""
    prepare: str = ""
    check: str = ""
    build_torch: bool = False
    overlap: bool = False


_ON_DEVICE = "tilegen.tune.device.measure"
_CUDA = Backend(
    setup=f"{_ON_DEVICE}:setup",
    measure=f"{_ON_DEVICE}:measure",
    rank=f"{_ON_DEVICE}:rank",
    copy_bandwidth=f"{_ON_DEVICE}:copy_bandwidth",
    build_setup="tilegen.tune.device.build:setup",
    describe="tilegen.tune.device.operators:describe",
    build="tilegen.tune.device.build:build",
    prepare="tilegen.tune.device.cases:prepare",
    check=f"{_ON_DEVICE}:check",
    build_torch=True,  # a building process plans operators itself, whose folders import torch
    overlap=True,
)

BACKENDS = {"llvm": Backend(), "cuda": _CUDA}
"""By target kind.  Another device is another module with the same functions and an entry here."""


GRACE = 1.0
"""Seconds after the deadline that a measurement in progress may still take."""


@dataclass(frozen=True)
class Limits:
    """Seconds and counts of building and measuring.

    `build` and `measure` are for one candidate, `whole` for what is run once a task: the unscheduled kernel, the ranking.
    `repeats` samples are taken of each candidate, `rounds` of each finalist.
    """

    build: float = 60.0
    measure: float = 60.0
    whole: float = 300.0
    repeats: int = 7
    rounds: int = 21


class Workshop:
    """The processes of one tuning call, shared by its tasks.  A context manager.

    Attributes
    ----------
    builders : the pool that builds.
    meters : by name the pool of each device; it has one process, so that nothing is measured beside anything else there.
    folder : for libraries and cases, removed at the end.
    """

    def __init__(
        self,
        target: Any,
        *,
        backend: Backend | None = None,
        limits: Limits | None = None,
        jobs: int | None = None,
        places: Mapping[str, dict[str, str]] | None = None,
    ) -> None:
        """`places`: by the name of each device the variables that tell its measuring process which one it is; this machine unless given."""
        kind = str(target.kind.name)
        self.target, self.backend, self.limits = target, backend or BACKENDS[kind], limits or Limits()
        self.builders = Pool(jobs or cores(), [self.backend.build_setup], hide_torch=not self.backend.build_torch)
        named = places or {"this machine": {}}
        self.meters = {name: Pool(1, [self.backend.setup], environment=own) for name, own in named.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="tilegen-tune-")
        self.folder = Path(self._folder.name)
        self._bandwidth: float | None = None

    @property
    def meter(self) -> Pool:
        """The first device's."""
        return next(iter(self.meters.values()))

    def __enter__(self) -> Workshop:
        for pool in (self.builders, *self.meters.values()):
            pool.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in (self.builders, *self.meters.values()):
            pool.close()
        self._folder.cleanup()

    def call(self, function: str, **arguments: Any) -> Any:
        """One call in the measuring process that must not fail."""
        (reply,) = self.meter.run([Job(function, arguments, self.limits.whole)])
        if reply.kind != OK:
            raise BuildError(f"{function} failed in a measuring process ({reply.kind}): {reply.message}")
        return reply.value

    def bandwidth(self) -> float:
        """Bytes per second of copying memory on this machine, measured once."""
        if self._bandwidth is None:
            self._bandwidth = float(self.call(self.backend.copy_bandwidth))
        return self._bandwidth


def make_case(task: Task, sizes: dict[str, int], seed: int, folder: Path, workshop: Workshop) -> Case:
    """Inputs, references and limits of a task at `sizes`, saved in `folder`.

    The limits come from running the unscheduled kernel, in a measuring process like any other.
    """
    arguments = task.arguments(sizes)
    outputs = [a for a in arguments if a.output]
    inputs = task.inputs(arguments, sizes, seed)
    Case(arguments, inputs, {}, {}).save(folder / "unlimited")
    plain = run_unscheduled(task, folder, workshop, outputs)
    if task.reference is None:
        references = {a.name: plain[a.name].astype(np.float64) for a in outputs}
        limits = {a.name: limit_around(plain[a.name], a.dtype) for a in outputs}
    else:
        expected = task.reference(inputs)
        references = {a.name: np.asarray(expected[a.name], np.float64) for a in outputs}
        for a in outputs:
            if references[a.name].shape != a.shape:
                shape = list(references[a.name].shape)
                raise ScheduleError(f"the reference of {task.name} gives {a.name} the shape {shape}, must be {list(a.shape)}")
        limits = {a.name: limit_for(plain[a.name], references[a.name], a.dtype) for a in outputs}
    case = Case(arguments, inputs, references, limits)
    case.save(folder / "case")
    return case


def run_unscheduled(task: Task, folder: Path, workshop: Workshop, outputs: Sequence[Argument]) -> dict[str, Array]:
    """The outputs of the unscheduled kernel on the inputs in ``folder / "unlimited"``."""
    library = folder / "plain.so"
    compile_to(task.unscheduled, workshop.target, library)
    workshop.call(workshop.backend.outputs, library=str(library), symbol=SYMBOL, case=str(folder / "unlimited"), into=str(folder))
    return {a.name: np.fromfile(folder / f"{a.name}.plain", dtype_of(a.dtype)).reshape(a.shape) for a in outputs}


class LocalEvaluator:
    """Builds, gates and measures the candidates of one task."""

    def __init__(self, task: Task, space: Space, workshop: Workshop, *, seed: int = 0) -> None:
        self.task, self.space, self.workshop = task, space, workshop
        self.folder = Path(tempfile.mkdtemp(dir=workshop.folder))
        self.best = float("inf")
        self.libraries: dict[Decisions, str] = {}
        shapes = {"tuned": task.sizes} | ({"ragged": task.ragged} if task.symbolic is not None else {})
        self.cases = {name: make_case(task, sizes, seed, self.folder / name, workshop) for name, sizes in shapes.items()}
        self._target = str(workshop.target)

    def evaluate(self, batch: Sequence[Candidate], deadline: float) -> Iterator[tuple[Candidate, Outcome]]:
        """Yield each candidate with its outcome; what `deadline` cuts off is not reported."""
        if self.workshop.backend.overlap:
            for reply in self.workshop.builders.run(self._build_jobs(batch), deadline):
                yield from self._after_build(reply, deadline)
            return
        # In small groups: what is built should be measured before the time is up, or the process is killed.
        group = 2 * self.workshop.builders.size
        for start in range(0, len(batch), group):
            built = list(self.workshop.builders.run(self._build_jobs(batch[start : start + group]), deadline))
            for reply in built:
                yield from self._after_build(reply, deadline)

    def rebuild(self, points: Sequence[Decisions]) -> Iterator[tuple[Decisions, Outcome]]:
        """Build points that an earlier call measured, and pass them through the gates again; yield those that fail.

        Their records would hold for the code of today, whatever made that of the day when they were measured.
        """
        missing = [Candidate(p) for p in points if p not in self.libraries]
        for reply in list(self.workshop.builders.run(self._build_jobs(missing))):
            for candidate, outcome in self._after_build(reply, float("inf"), repeats=1):
                if not outcome.ok:
                    self.libraries.pop(candidate.decisions, None)
                    yield candidate.decisions, outcome

    def rank(self, points: Sequence[Decisions], seconds: float) -> list[list[float]]:
        """Samples of several points that `rebuild` or `evaluate` built, taken in turns."""
        samples: list[list[float]] = self.workshop.call(
            self.workshop.backend.rank,
            libraries=[self.libraries[p] for p in points],
            symbol=SYMBOL,
            timed=self._case("tuned"),
            rounds=self.workshop.limits.rounds,
            seconds=seconds,
        )
        return samples

    def _build_jobs(self, batch: Sequence[Candidate]) -> Iterator[Job]:
        base = self.task.mod if self.task.symbolic is None else self.task.symbolic
        for candidate in batch:
            # Made here, one after the other, while the workers compile those before.
            module = tvm.ir.save_json(self.space.schedule(candidate.decisions, base).mod)
            out = str(self.folder / ("-".join(map(str, candidate.decisions)) or "only")) + ".so"
            yield Job(
                self.task.build, {"module": module, "target": self._target, "out": out}, self.workshop.limits.build, candidate
            )

    def _after_build(self, reply: Reply, deadline: float, repeats: int | None = None) -> Iterator[tuple[Candidate, Outcome]]:
        candidate: Candidate = reply.job.tag
        if reply.kind != OK:
            kind = "build" if reply.kind == "error" else reply.kind
            yield candidate, Outcome(kind, message=f"while building: {reply.message}")
            return
        self.libraries[candidate.decisions] = reply.job.arguments["out"]
        job = Job(
            self.workshop.backend.measure,
            {
                "library": reply.job.arguments["out"],
                "symbol": SYMBOL,
                "timed": self._case("tuned"),
                "checked": [self._case(name) for name in self.cases],
                "repeats": repeats or self.workshop.limits.repeats,
                "hurry": self.best if np.isfinite(self.best) else None,
            },
            self.workshop.limits.measure,
        )
        if time.monotonic() >= deadline:
            return
        # What is being measured may finish: the final ranking needs this process, and starting another takes as long.
        for measured in self.workshop.meter.run([job], deadline + GRACE):
            outcome = self._outcome(measured)
            if not outcome.ok:
                # It may have written anywhere in that process.
                self.workshop.meter.discard()
            self.best = min(self.best, outcome.seconds)
            yield candidate, outcome

    def _outcome(self, reply: Reply) -> Outcome:
        if reply.kind != OK:
            kind = "crash" if reply.kind == "error" else reply.kind
            return Outcome(kind, message=f"while measuring: {reply.message}")
        if reply.value["kind"] != OK:
            return Outcome(reply.value["kind"], message=reply.value["message"])
        return Outcome(OK, *summary(reply.value["samples"]))

    def _case(self, name: str) -> str:
        return str(self.folder / name / "case")


def summary(samples: Sequence[float]) -> tuple[float, float]:
    """Median and distance between the quartiles, in the unit of the samples."""
    if len(samples) < 2:
        return float(samples[0]), 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle, high - low
