"""The search of all kernels of a call at once: while each device measures one, all cores build others.

Kernels have independent decisions, so each has a space, a journal and a model of its own.  Nothing waits for a round to end: whenever
a core comes free the kernel whose next trial is worth most proposes one, and whenever a device does it measures the candidate of
such a kernel.  A kernel whose search is over is ranked at once, on one device, so that little is left to do when the time is up.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tilegen.build.target import BuildTarget
from tilegen.errors import RecordError, ScheduleError
from tilegen.tune.device import winner
from tilegen.tune.device.build import target_text
from tilegen.tune.device.hunt import Hunt, Staged
from tilegen.tune.device.meters import Meter, Meters, outcome_of
from tilegen.tune.device.operators import Request, Sketch
from tilegen.tune.engine import Candidate, Effort
from tilegen.tune.evolve import Decisions
from tilegen.tune.journal import OK, Outcome
from tilegen.tune.local import Workshop
from tilegen.tune.pool import Job, Reply, attend
from tilegen.tune.progress import Progress, duration
from tilegen.tune.report import TIME_UP, SearchResult
from tilegen.tune.session import Standing, judge

ROUNDS, FEWEST = 15, 5
"""Samples of each finalist, as many as fit into `FINAL_SECONDS`."""

REPEATS = 11
"""Samples of each candidate."""

FINAL_SECONDS = 0.3
"""Of the samples of one kernel's ranking."""

RANKING = 0.6
"""Seconds that ranking one kernel takes in all, until it is known."""

FINAL_SHARE = 0.25
"""Part of the time that is kept for the ranking at most."""

ENDING = 0.7
"""Seconds for ending the processes."""

AHEAD = 2
"""Candidates built and not yet measured, and jobs waiting for a core, for each core."""

AT_HOME = 2.0
"""How many times as much a trial must be worth before a device that knows one operator sets the stage of another."""

CASES = 4
"""One of so many cores makes references while there are candidates to build."""


class Fleet:
    """All operators of a call.

    Parameters
    ----------
    deadline : monotonic time at which everything including the final ranking is done.

    Attributes
    ----------
    bandwidth : bytes per second of copying on the devices.
    """

    def __init__(
        self,
        workshop: Workshop,
        effort: Effort,
        *,
        deadline: float,
        log_dir: Path,
        resume: bool,
        seed: int,
        progress: Progress,
    ) -> None:
        self.workshop, self.effort, self.deadline, self.begun = workshop, effort, deadline, time.monotonic()
        self.log_dir, self.resume, self.seed, self.progress = log_dir, resume, seed, progress
        self.meters, self.bandwidth = Meters(workshop, progress.say), 0.0
        self.staged: list[Staged] = []
        self.skipped: list[tuple[str, str]] = []
        self.found: dict[Hunt, SearchResult] = {}
        self.trials = self.rejected = 0
        self.busy = {"planning": 0.0, "building": 0.0, "references": 0.0, "measuring": 0.0, "ranking": 0.0}
        """Seconds that processes worked."""
        self._coming: list[Request] = []
        self._first: deque[Job] = deque()
        self._cases: deque[Job] = deque()
        self._making = 0  # cases
        self._ranked = 0

    def search(self, requests: Sequence[Request], target: BuildTarget) -> list[SearchResult]:
        """Search, rank and record.

        Raises
        ------
        ScheduleError
            When no kernel of any operator has a valid candidate.
        """
        self._coming = list(requests)
        self._first.extend(self._describe_job(request, target) for request in requests)
        try:
            self._feed()
            self.bandwidth = self.meters.begin()  # while the building processes start
            while (left := self._stop() - time.monotonic()) > 0 and self._feed():
                self._wait(left)
            self._close()
            self.skipped += [(request.name, TIME_UP) for request in self._coming]
            return self._finish()
        finally:
            for hunt in self._hunts():
                hunt.journal.close()

    def _hunts(self) -> list[Hunt]:
        return [hunt for staged in self.staged for hunt in staged.hunts.values()]

    def _active(self) -> list[Hunt]:
        return [hunt for staged in self.staged for hunt in staged.active()]

    def _stop(self) -> float:
        """When the search ends and what is left to rank is ranked."""
        count = sum(1 for hunt in self._active() if hunt.journal.successes())
        each = self.busy["ranking"] / self._ranked if self._ranked else RANKING
        needed = 0.5 + each * count / len(self.meters.live)
        return self.deadline - ENDING - min(needed, FINAL_SHARE * (self.deadline - self.begun))

    def _wait(self, seconds: float) -> None:
        """Look at the replies that come."""
        builders = self.workshop.builders
        attend([builders, *(meter.pool for meter in self.meters.live)], seconds)
        self._deliver([*builders.poll(0.0), *self.meters.replies()])

    def _deliver(self, replies: Sequence[Reply]) -> bool:
        return bool([reply.job.tag(reply) for reply in replies])

    def _feed(self) -> bool:
        """Keep the cores and the devices busy; whether anything is going on."""
        builders, meters = self.workshop.builders, self.meters
        self._deliver(meters.prove(self._proof))
        for meter in meters.idle():
            if (job := self._for_device(meter)) is not None:
                meter.pool.submit(job)
        while builders.load < AHEAD * builders.size and (job := self._for_builders()) is not None:
            builders.submit(job)
        return bool(builders.load or meters.load or self._first or self._cases) or self._deliver(meters.settle())

    def _for_builders(self) -> Job | None:
        """What to build next: what an operator cannot be measured without, references, candidates."""
        few = self._making < max(1, self.workshop.builders.size // CASES)
        if self._cases and few and not self._first:
            self._making += 1
            return self._cases.popleft()
        if self._first:
            return self._first.popleft()
        going = [hunt for hunt in self._active() if hunt.stopped(self.effort) is None]
        if sum(len(hunt.waiting) for hunt in going) < AHEAD * self.workshop.builders.size:
            for hunt in sorted(going, key=Hunt.urgency, reverse=True):
                if (candidate := hunt.next(self.effort)) is not None:
                    handle = functools.partial(self._built, functools.partial(hunt.take, candidate))
                    # An estimate does not decide about what is used now.
                    prune = candidate.decisions != hunt.incumbent
                    return self._build_job(hunt.owner, hunt.place, candidate.decisions, handle, prune)
        if self._cases:
            self._making += 1
            return self._cases.popleft()
        return None

    def _for_device(self, meter: Meter) -> Job | None:
        """What a device measures next: what another one left, candidates, and the finalists of a kernel whose search is over."""
        if self.meters.again:
            return self.meters.again.popleft()
        for hunt in self._active():
            if hunt.stopped(self.effort) and not hunt.flying and (job := self._ranking(hunt)) is not None:
                return job
        ready = [hunt for hunt in self._active() if hunt.waiting and hunt.owner.stage]
        if not ready:
            return None
        hunt = max(ready, key=lambda h: h.urgency() * (AT_HOME if meter.pool.knows(h.owner.topic) else 1.0))
        candidate, built = hunt.waiting.popleft()
        arguments = self._on_stage(hunt) | {
            "library": built["library"],
            "checked": (checked := hunt.owner.checked()),
            "number": hunt.number,
            "repeats": REPEATS,
            "hurry": hunt.best if hunt.best < float("inf") else None,
        }
        handle = functools.partial(self._measured, hunt, candidate, bool(checked))
        return Job(self.workshop.backend.measure, arguments, self.workshop.limits.measure, handle, hunt.owner.topic)

    def _ranking(self, hunt: Hunt) -> Job | None:
        """The next step towards the ranking of a kernel; None: it waits for one before, or there is nothing to rank."""
        if hunt.judging:
            return None
        points = hunt.finalists()
        if not points:
            hunt.finished = True
            return None
        for point in points:
            if point not in hunt.libraries and point not in hunt.rebuilt:
                hunt.rebuilt.add(point)
                self._first.append(self._build_job(hunt.owner, hunt.place, point, functools.partial(self._rebuilt, hunt, point)))
        checked = hunt.owner.checked()
        if not checked or any(point not in hunt.libraries for point in points):
            return None
        backend, limits, hunt.judging = self.workshop.backend, self.workshop.limits, True
        for point in points:
            if point not in hunt.checked:
                arguments = {"library": hunt.libraries[point], "checked": checked, "number": hunt.number}
                return Job(
                    backend.check, arguments, limits.measure, functools.partial(self._checked, hunt, point), hunt.owner.topic
                )
        fitting = int(FINAL_SECONDS / (len(points) * max(hunt.best, 1e-5)))
        arguments = self._on_stage(hunt) | {
            "libraries": [hunt.libraries[point] for point in points],
            "rounds": max(FEWEST, min(ROUNDS, fitting)),
        }
        return Job(backend.rank, arguments, limits.whole, functools.partial(self._judged, hunt, points), hunt.owner.topic)

    def _proof(self, job: Job) -> Job | None:
        """A measurement for the same operator as `job` that must not fail on any device, as soon as one is known."""
        for hunt in self._hunts():
            point = next((t.decisions for t in hunt.journal.successes() if t.decisions in hunt.libraries), None)
            if hunt.owner.topic == job.topic and point is not None:
                arguments = self._on_stage(hunt) | {"libraries": [hunt.libraries[point]], "rounds": 1}
                return Job(self.workshop.backend.rank, arguments, self.workshop.limits.measure, topic=job.topic)
        return None

    def _describe_job(self, request: Request, target: BuildTarget) -> Job:
        instance = request.instance.key
        arguments = {"instance": instance, "module": request.module, "given": dict(request.given), "step": request.step}
        handle = functools.partial(self._planned, request, target)
        arguments["target"] = target_text(target)
        return Job(self.workshop.backend.describe, arguments, self.workshop.limits.whole, handle, instance)

    def _planned(self, request: Request, target: BuildTarget, reply: Reply) -> None:
        """Queue what the measurements of an operator need."""
        self.busy["planning"] += reply.seconds
        self._coming.remove(request)
        problem = reply.message if reply.kind != OK else reply.value.get("error")
        if problem is not None:
            self.skipped.append((request.name, problem))
            return
        staged = Staged(Sketch(reply.value, target), self.workshop.folder)
        for place, kernel in staged.operator.kernels.items():
            try:
                staged.hunts[place] = Hunt(kernel, staged, self.log_dir, self.seed, self.resume)
            except RecordError as error:  # a call on another GPU of this machine may be searching it
                self.skipped.append((kernel.name, str(error)))
        self.staged.append(staged)
        if all(hunt.stopped(self.effort) and not hunt.finalists() for hunt in staged.hunts.values()):
            for hunt in staged.hunts.values():
                hunt.finished = True  # an earlier call left nothing to do
            return
        for place in staged.operator.places:
            self._first.append(
                self._build_job(staged, place, (), functools.partial(self._built, functools.partial(staged.take_default, place)))
            )
        self._cases.append(self._case_job(staged))

    def _build_job(
        self,
        staged: Staged,
        place: tuple[str, int],
        decisions: Sequence[int],
        handle: Callable[[Reply], None],
        prune: bool = False,
    ) -> Job:
        operator = staged.operator
        arguments = operator.job(*place) | {"decisions": list(decisions), "target": operator.text}
        arguments |= {"folder": str(staged.folder), "prune": prune}
        return Job(self.workshop.backend.build, arguments, self.workshop.limits.build, handle, arguments["instance"])

    def _case_job(self, staged: Staged) -> Job:
        arguments, folder = staged.operator.owner(), staged.folder / "cases"
        arguments |= {"sizes": staged.operator.checks(), "seed": self.seed, "folder": str(folder), "dtype": staged.operator.dtype}
        handle = functools.partial(self._prepared, staged, folder)
        return Job(self.workshop.backend.prepare, arguments, self.workshop.limits.whole, handle, arguments["instance"])

    def _on_stage(self, hunt: Hunt) -> dict[str, Any]:
        kernel = hunt.kernel
        return {"stage": str(hunt.owner.stage), "names": kernel.names, "written": kernel.written, "scratch": kernel.scratch}

    def _built(self, take: Callable[[Reply], None], reply: Reply) -> None:
        self.busy["building"] += reply.seconds
        take(reply)

    def _rebuilt(self, hunt: Hunt, point: Decisions, reply: Reply) -> None:
        self.busy["building"] += reply.seconds
        hunt.take_again(point, reply)

    def _prepared(self, staged: Staged, folder: Path, reply: Reply) -> None:
        self.busy["references"] += reply.seconds
        self._making -= 1
        if reply.kind == OK:
            staged.cases = folder
        else:
            staged.error = f"no references: {reply.message}"

    def _measured(self, hunt: Hunt, candidate: Candidate, checked: bool, reply: Reply) -> None:
        self.busy["measuring"] += reply.seconds
        outcome = outcome_of(reply)
        if checked and outcome.ok:
            hunt.checked.add(candidate.decisions)
        hunt.note(candidate, outcome)
        self.trials, self.rejected = self.trials + 1, self.rejected + (not outcome.ok)
        self.progress.stage(self._line(hunt), quietly=False)

    def _checked(self, hunt: Hunt, point: Decisions, reply: Reply) -> None:
        self.busy["ranking"] += reply.seconds
        hunt.judging = False
        outcome = Outcome(OK) if reply.kind == OK and reply.value["kind"] == OK else outcome_of(reply)
        if outcome.ok:
            hunt.checked.add(point)
        else:
            self.rejected += 1
            hunt.reject(point, outcome)

    def _judged(self, hunt: Hunt, points: Sequence[Decisions], reply: Reply) -> None:
        self.busy["ranking"] += reply.seconds
        self._ranked += 1
        hunt.finished = True
        if reply.kind != OK:
            hunt.error = f"{hunt.kernel.name}: the ranking failed ({reply.kind}): {reply.message}"
            return
        standings = [Standing(point, taken) for point, taken in zip(points, reply.value, strict=True)]
        self._record_winner(hunt, standings)

    def _line(self, hunt: Hunt) -> str:
        rate = self.trials / max(time.monotonic() - self.begun, 1e-9)
        kernels = len(self._hunts())
        best = f", best {duration(hunt.best)}" if hunt.best < float("inf") else ""
        rejected = f", {self.rejected} rejected" if self.rejected else ""
        return f"{self.trials} trials of {kernels} kernels, {rate:.1f} trials/s{rejected}; {hunt.kernel.name}{best}"

    def _close(self) -> None:
        """The time is up, or nothing is left to search: rank what is not ranked, what gained most first."""
        builders, meters = self.workshop.builders, self.meters
        left = [hunt for hunt in self._active() if hunt.journal.successes()]
        left.sort(key=lambda hunt: hunt.best / (hunt.default_seconds or hunt.best))
        needed = (self._rebuilt, self._prepared)
        self._first = deque(job for job in [*self._first, *builders.withdraw(), *self._cases] if job.tag.func in needed)
        meters.again = deque(job for job in meters.again if job.tag.func in (self._checked, self._judged))
        while (now := time.monotonic()) < self.deadline - ENDING and any(not (hunt.finished or hunt.error) for hunt in left):
            self._deliver(meters.prove(self._proof))
            for meter in meters.idle():
                ranking = (self._ranking(hunt) for hunt in left if not hunt.finished and not hunt.error and not hunt.owner.error)
                job = meters.again.popleft() if meters.again else next(filter(None, ranking), None)
                if job is not None:
                    meter.pool.submit(job)
            while self._first:
                builders.submit(self._first.popleft())
            if not (builders.load or meters.load or self._deliver(meters.settle())):
                break
            self._wait(self.deadline - ENDING - now)
        builders.drop()
        meters.drop()

    def _finish(self) -> list[SearchResult]:
        """The results, and what became of the rest."""
        failed = []
        for staged in self.staged:
            if staged.error:
                failed.append((staged.operator.name, staged.error))
                continue
            for hunt in staged.hunts.values():
                if hunt.error:
                    failed.append((hunt.kernel.name, hunt.error))
                elif hunt not in self.found:
                    # A ranking of an earlier call stands until another is done.
                    if hunt.journal.verdict is not None:
                        self._note(hunt, {**hunt.journal.verdict, "stopped": "known" if hunt.finished else "time"})
                    else:
                        failed.append((hunt.kernel.name, TIME_UP))
        if failed and not self.found and any(hunt.error for hunt in self._hunts()):
            raise ScheduleError(next(hunt.error for hunt in self._hunts() if hunt.error))
        self.skipped += failed
        return [self.found[hunt] for hunt in self._hunts() if hunt in self.found]

    def _record_winner(self, hunt: Hunt, standings: Sequence[Standing]) -> None:
        """Judge a ranking, and write a record when the winner is not what is used now."""
        space = hunt.kernel.space
        best, verdict = judge(standings, space, hunt.incumbent)  # type: ignore[arg-type]
        verdict |= {"record": None, "log": None, "correlation": hunt.proposer.rank_correlation()}
        verdict["stopped"] = hunt.stopped(self.effort) or "time"
        # A default that won needs no record: it stays what is used, and may become better.
        if best.decisions != (hunt.incumbent or space.default):
            verdict |= winner.write(hunt, best, verdict)
        hunt.journal.rank(verdict)
        self._note(hunt, verdict)

    def _note(self, hunt: Hunt, verdict: dict[str, Any]) -> None:
        self.found[hunt] = winner.result(hunt, verdict, self.bandwidth)
        self.progress.say(self.found[hunt].lines()[0])
