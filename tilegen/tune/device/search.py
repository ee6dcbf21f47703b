"""The search of all kernels of a call at once: while the device measures one, all cores build the next.

Kernels have independent decisions, so each has a space, a journal and a model of its own.  The search goes in rounds: every kernel
proposes a batch, all batches are built as one stream and measured as they come, and what the round found decides the next.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tilegen.build.target import BuildTarget
from tilegen.bundle import gpu
from tilegen.errors import ScheduleError, TilegenError
from tilegen.tune import logs, records
from tilegen.tune.device.hunt import Hunt, Staged
from tilegen.tune.device.operators import Operator
from tilegen.tune.engine import Candidate, Effort
from tilegen.tune.journal import OK, Outcome
from tilegen.tune.local import GRACE, Workshop, summary
from tilegen.tune.pool import Job, Reply
from tilegen.tune.progress import Progress, duration
from tilegen.tune.records import Record
from tilegen.tune.report import TIME_UP, SearchResult
from tilegen.tune.session import Standing, judge, versions

ROUNDS, FEWEST = 15, 5
"""Samples of each finalist, as many as fit into `FINAL_SECONDS`."""

REPEATS = 11
"""Samples of each candidate."""

FINAL_SECONDS, STAGE_SECONDS = 0.3, 0.7
"""Of ranking one kernel, and of setting the stage of an operator for it."""

FINAL_SHARE = 0.25
"""Part of the time that is kept for that at most."""

SWEEP = 3
"""Rounds that every kernel takes part in; later ones are for kernels that take their part of the operator's time."""

FIRST_BATCH = 4
"""Candidates of each kernel in the first round: then it is known which operators and kernels are worth more."""

WORTH = 0.02
"""Part of an operator's time from which a kernel is searched on."""


class Fleet:
    """All operators of a call.

    Parameters
    ----------
    operators : made one by one, when the building processes have nothing to do for those before.
    deadline : monotonic time at which everything including the final ranking is done.
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
        self.staged: list[Staged] = []
        self.skipped: list[tuple[str, str]] = []
        self.reached: set[str] = set()
        self.trials = self.rejected = 0

    def search(self, operators: Sequence[tuple[str, Callable[[], Operator]]]) -> list[SearchResult]:
        """Search, rank and record.

        Parameters
        ----------
        operators : name, and what makes it.

        Raises
        ------
        ScheduleError
            When no kernel of any operator has a valid candidate.
        """
        try:
            rounds = 0
            while time.monotonic() < self._stop():
                fresh = operators if rounds == 0 else ()
                self._round(fresh, rounds)
                rounds += 1
                if not any(self._wanted(hunt, rounds) for staged in self.staged for hunt in staged.active()):
                    break
            self.skipped += [(name, TIME_UP) for name, _ in operators if name not in self.reached]
            return self._finish()
        finally:
            for staged in self.staged:
                for hunt in staged.hunts.values():
                    hunt.journal.close()

    def _stop(self) -> float:
        """When the search ends and the ranking begins."""
        count = sum(len(staged.hunts) for staged in self.staged)
        needed = 1.0 + FINAL_SECONDS * count + STAGE_SECONDS * len(self.staged)
        return self.deadline - min(needed, FINAL_SHARE * (self.deadline - self.begun))

    def _round(self, fresh: Sequence[tuple[str, Callable[[], Operator]]], rounds: int) -> None:
        for reply in self.workshop.builders.run(self._jobs(fresh, rounds), self.deadline):
            if time.monotonic() >= self._stop():  # comes earlier with every kernel
                break
            staged: Staged = reply.job.tag[0]
            if reply.job.call == self.workshop.backend.prepare:
                hunt: Hunt = reply.job.tag[1]
                if reply.kind == OK:
                    hunt.ready = True
                else:
                    hunt.error = f"no reference: {reply.message}"
            elif isinstance(reply.job.tag[1], Hunt):
                reply.job.tag[1].take(reply.job.tag[2], reply)
            else:
                staged.take_default(reply.job.tag[1], reply)
            self._measure(staged)
        for staged in self.staged:
            for hunt in staged.active():
                hunt.learn()

    def _jobs(self, fresh: Sequence[tuple[str, Callable[[], Operator]]], rounds: int) -> Iterator[Job]:
        """What is to be built, in order; made as the processes come free."""
        for staged in sorted(self.staged, key=lambda staged: staged.seconds, reverse=True):
            yield from self._batches(staged, rounds)
        for name, make in fresh:
            self.reached.add(name)
            self.progress.stage(f"planning {name}")
            try:
                staged = Staged(make(), self.workshop.folder)
                kernels = {place: staged.operator.kernel(*place) for place in staged.operator.places}
                for place, kernel in kernels.items():
                    if kernel is not None:
                        staged.hunts[place] = Hunt(kernel, staged, self.log_dir, self.seed, self.resume)
            except TilegenError as error:
                self.skipped.append((name, str(error)))
                continue
            self.staged.append(staged)
            if all(hunt.journal.ranked and not self._wanted(hunt, rounds) for hunt in staged.hunts.values()):
                continue  # an earlier call left nothing to do
            for place in staged.operator.places:
                yield self._build_job(staged, place, (), (staged, place))
            for hunt in staged.hunts.values():
                yield self._case_job(staged, hunt)
                # What an earlier call found best takes part in the ranking.
                for point in hunt.finalists():
                    yield self._build_job(staged, hunt.place, point, (staged, hunt, Candidate(point)))
            yield from self._batches(staged, rounds)

    def _batches(self, staged: Staged, rounds: int) -> Iterator[Job]:
        batches = []
        for hunt in staged.active():
            if self._wanted(hunt, rounds):
                most = self.effort.batch if rounds else min(FIRST_BATCH, self.effort.batch)
                batch = hunt.proposer.propose(min(most, self.effort.trials - len(hunt.journal.trials)))
                hunt.exhausted = not batch
                batches.append([(hunt, candidate) for candidate in batch])
        # In turns: when time runs out, every kernel has had its part.
        for pairs in itertools.zip_longest(*batches):
            for hunt, candidate in filter(None, pairs):
                yield self._build_job(staged, hunt.place, candidate.decisions, (staged, hunt, candidate))

    def _wanted(self, hunt: Hunt, rounds: int) -> bool:
        """Whether a kernel takes part in a round."""
        if hunt.exhausted or len(hunt.journal.trials) >= self.effort.trials:
            return False
        return rounds < SWEEP or hunt.best >= WORTH * hunt.owner.seconds

    def _build_job(self, staged: Staged, place: tuple[str, int], decisions: Sequence[int], tag: Any) -> Job:
        operator = staged.operator
        arguments = operator.job(*place) | {"decisions": list(decisions), "target": operator.text}
        return Job(self.workshop.backend.build, arguments | {"folder": str(staged.folder)}, self.workshop.limits.build, tag)

    def _case_job(self, staged: Staged, hunt: Hunt) -> Job:
        arguments = staged.operator.job(*hunt.place)
        arguments |= {"sizes": staged.operator.checks(), "seed": self.seed, "folder": str(hunt.folder)}
        return Job(self.workshop.backend.prepare, arguments, self.workshop.limits.whole, (staged, hunt))

    def _measure(self, staged: Staged) -> None:
        """Measure what is built and has its references and its stage."""
        for hunt in staged.active():
            while staged.stage and hunt.ready and hunt.waiting and time.monotonic() < self._stop():
                candidate, built = hunt.waiting.pop(0)
                kernel = hunt.kernel
                arguments = {
                    "library": built["library"],
                    "stage": str(staged.stage),
                    "names": kernel.names,
                    "written": kernel.written,
                    "checked": [str(hunt.folder / name) for name in staged.operator.checks()],
                    "repeats": REPEATS,
                    "hurry": hunt.best if hunt.best < float("inf") else None,
                }
                job = Job(self.workshop.backend.measure, arguments, self.workshop.limits.measure)
                for reply in self.workshop.meter.run([job], self._stop() + GRACE):
                    outcome = _outcome(reply)
                    if not outcome.ok:
                        # It may have written anywhere on the device, and after an illegal access nothing works any more.
                        self.workshop.meter.discard()
                        self.workshop.meter.start()
                    hunt.note(candidate, outcome)
                    self.trials, self.rejected = self.trials + 1, self.rejected + (not outcome.ok)
                    self.progress.stage(self._line(hunt), quietly=False)

    def _line(self, hunt: Hunt) -> str:
        rate = self.trials / max(time.monotonic() - self.begun, 1e-9)
        kernels = sum(len(staged.hunts) for staged in self.staged)
        best = f", best {duration(hunt.best)}" if hunt.best < float("inf") else ""
        rejected = f", {self.rejected} rejected" if self.rejected else ""
        return f"{self.trials} trials of {kernels} kernels, {rate:.1f} trials/s{rejected}; {hunt.kernel.name}{best}"

    def _finish(self) -> list[SearchResult]:
        """Rank what was searched, write records, and say what became of the rest."""
        found, failed = [], []
        for staged in self.staged:
            if staged.error:
                failed.append((staged.operator.name, staged.error))
            for hunt in staged.hunts.values():
                if hunt.error:
                    failed.append((hunt.kernel.name, hunt.error))
                elif not staged.error and self._can_rank(staged, hunt):
                    found.append(self._ranked(staged, hunt))
                elif not staged.error:
                    failed.append((hunt.kernel.name, TIME_UP))
        if failed and not found and any(h.error for s in self.staged for h in s.hunts.values()):
            raise ScheduleError(failed[0][1])
        self.skipped += failed
        return found

    def _can_rank(self, staged: Staged, hunt: Hunt) -> bool:
        """Whether a kernel is ranked already, or can be while there is time."""
        if hunt.journal.ranked is not None:
            return True
        built = any(point in hunt.libraries for point in hunt.finalists())
        return built and staged.stage is not None and time.monotonic() < self.deadline

    def _ranked(self, staged: Staged, hunt: Hunt) -> SearchResult:
        journal, space = hunt.journal, hunt.kernel.space
        verdict = journal.ranked
        if verdict is None:
            points = [p for p in hunt.finalists() if p in hunt.libraries]
            samples = self.workshop.call(
                self.workshop.backend.rank,
                libraries=[hunt.libraries[p] for p in points],
                stage=str(staged.stage),
                names=hunt.kernel.names,
                written=hunt.kernel.written,
                rounds=max(FEWEST, min(ROUNDS, int(FINAL_SECONDS / (len(points) * max(hunt.best, 1e-5))))),
            )
            standings = [Standing(point, taken) for point, taken in zip(points, samples, strict=True)]
            winner, verdict = judge(standings, space, hunt.incumbent)  # type: ignore[arg-type]
            verdict |= {"record": None, "log": None, "correlation": hunt.proposer.rank_correlation()}
            verdict["stopped"] = "exhausted" if hunt.exhausted else "time" if time.monotonic() >= self._stop() else "trials"
            # A default that won needs no record: it stays what is used, and may become better.
            if winner.decisions != (hunt.incumbent or space.default):
                record = self._record(staged, hunt, winner, verdict)
                path = records.log_path(self.log_dir, hunt.kernel.key.host, hunt.kernel.key.op)
                logs.append(path, record)
                verdict |= {"record": record.id, "log": str(path)}
            journal.rank(verdict)
        else:
            verdict = {**verdict, "stopped": "known"}
        result = SearchResult(
            name=hunt.kernel.name,
            trials=len(journal.trials),
            space=space.total,
            seconds=verdict["seconds"],
            spread=verdict["spread"],
            default_seconds=verdict["default_seconds"],
            before_seconds=verdict["before_seconds"],
            decisions=list(verdict["decisions"]),
            stopped=verdict["stopped"],
            rejected=journal.failures(),
            correlation=verdict["correlation"],
            record=verdict["record"],
            log=Path(verdict["log"]) if verdict["log"] else None,
            history=journal.history(),
            reasons=journal.reasons(),
            traffic=hunt.kernel.traffic,
            flops=hunt.kernel.flops,
            bandwidth=self.workshop.bandwidth(),
        )
        self.progress.say(result.lines()[0])
        return result

    def _record(self, staged: Staged, hunt: Hunt, winner: Standing, verdict: dict[str, Any]) -> Record:
        target, known = staged.operator.target, hunt.known
        return Record(
            key=hunt.kernel.key,
            trace=[[name, value] for name, value in zip(hunt.kernel.space.names, winner.decisions, strict=True)],
            decisions=list(winner.decisions),
            seconds=verdict["seconds"],
            spread=verdict["spread"],
            default_seconds=verdict["default_seconds"],
            sizes=dict(staged.operator.sizes),
            device=device_text(target),
            versions=versions() | {"cuda": compiler_release()},
            trials=len(hunt.journal.trials),
            seed=self.seed,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            supersedes=known.id if known and known.source != "nearest" else None,
        )


def device_text(target: BuildTarget) -> dict[str, Any]:
    """What a record says of the device."""
    major, minor = gpu.driver().version
    return {
        "name": target.device,
        "arch": target.description["arch"],
        "driver": f"{major}.{minor}",
        **dataclasses.asdict(target.machine),
    }


def compiler_release() -> str:
    """The release of the CUDA compiler that candidates are built with."""
    from tilegen.build import compilers

    return compilers.release(compilers.choose("nvrtc"))


def _outcome(reply: Reply) -> Outcome:
    if reply.kind != OK:
        return Outcome("crash" if reply.kind == "error" else reply.kind, message=f"while measuring: {reply.message}")
    if reply.value["kind"] != OK:
        return Outcome(reply.value["kind"], message=reply.value["message"])
    return Outcome(OK, *summary(reply.value["samples"]))
