"""The search of one kernel from its journal to its record."""

from __future__ import annotations

import datetime
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilegen import _tvm, settings
from tilegen.build.host import cores
from tilegen.errors import ScheduleError
from tilegen.tune import logs, records
from tilegen.tune.case import traffic
from tilegen.tune.engine import UNLIMITED, Effort, Proposer, explore
from tilegen.tune.journal import INVALID, Journal, Outcome
from tilegen.tune.local import GRACE, LocalEvaluator, Workshop, summary
from tilegen.tune.progress import Progress
from tilegen.tune.records import Record, RecordKey
from tilegen.tune.report import SearchResult
from tilegen.tune.search import MetaScheduleProposer
from tilegen.tune.space import Decisions, Space, trace_json
from tilegen.tune.task import Task

FINALISTS = 4
"""Fastest trials that are measured again, in turns with the default and with what is used now."""

FINAL_SHARE = 0.15
"""Share of a kernel's time kept for that."""

DUEL_SHARE = 0.5
"""Share of that time in which the fastest and what is used now are measured alone."""


@dataclass(frozen=True)
class Standing:
    """One finalist after the final ranking."""

    decisions: Decisions
    samples: list[float]

    @property
    def seconds(self) -> float:
        return summary(self.samples)[0]


def beats(challenger: Standing, champion: Standing) -> bool:
    """Whether the challenger wins by more than the spread: in three quarters of the rounds, measured side by side."""
    differences = [b - a for a, b in zip(challenger.samples, champion.samples, strict=True)]
    if len(differences) < 2:
        return False
    return statistics.quantiles(differences, n=4, method="inclusive")[0] > 0


def journal_path(task: Task, log_dir: Path, seed: int) -> Path:
    """Where the trials of a task are kept: beside the log, not part of it."""
    return journal_at(task.key, log_dir, seed)


def journal_at(key: RecordKey, log_dir: Path, seed: int) -> Path:
    """Where the trials of the kernel with this key are kept."""
    return log_dir / key.host / "journal" / f"{key.op}.{key.function}.{key.kernel}.{key.id}.{seed}"


def versions() -> dict[str, str]:
    """What a record says about the compiler that made it."""
    import tilegen

    found = {name: _tvm.installed(name) or "" for name in ("apache-tvm", "apache-tvm-ffi")}
    return {"tilegen": tilegen.__version__, **found}


def search(
    task: Task,
    workshop: Workshop,
    effort: Effort,
    *,
    deadline: float = float("inf"),
    log_dir: Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: Progress,
) -> SearchResult | None:
    """Search `task`, rank the best side by side, and record the winner if it is better than what is used now.

    Parameters
    ----------
    deadline : monotonic time at which everything including the final ranking is done.

    Returns
    -------
    The result, or None when the time was up before any candidate was measured.

    Raises
    ------
    ScheduleError
        When the rule cannot be searched, or nothing in the first batch is valid.
    RecordError
        When another process searches the same kernel.
    """
    log_dir = log_dir or settings.log_dir()
    space = Space(task.mod, task.rule)
    known = records.lookup(task.key, log_dir)
    incumbent = space.indices(known.decisions) if known else None
    kernel = hashlib.sha256(task.mod.script().encode()).hexdigest()[:16]
    meaning = {"categories": space.categories, "sizes": task.sizes, "kernel": kernel, "versions": versions()}
    with Journal(journal_path(task, log_dir, seed), meaning, resume=resume) as journal:
        if journal.ranked and (len(journal.trials) >= effort.trials or journal.ranked["stopped"] == "exhausted"):
            return _known(task, space, journal, workshop.bandwidth())
        progress.stage(f"{task.name}: preparing inputs and references")
        evaluator = LocalEvaluator(task, space, workshop, seed=seed)
        seeds = [incumbent] if incumbent is not None else []
        proposer = MetaScheduleProposer(space, workshop.target, seeds=seeds, seed=seed, batch=effort.batch)
        moved = traffic(task.arguments(task.sizes))
        progress.begin(task.name, len(journal.trials), min(effort.trials, space.total), moved, task.flops, workshop.bandwidth())
        for trial in journal.successes()[:1]:
            evaluator.best = trial.outcome.seconds
            progress.best(trial.outcome.seconds)
        final = min(10.0, max(GRACE + 0.5, FINAL_SHARE * (deadline - time.monotonic())))
        stopped = explore(
            proposer,
            evaluator,
            journal,
            trials=min(effort.trials, UNLIMITED),
            deadline=deadline - final,
            batch=effort.batch,
            watch=progress.trial,
        )
        if not journal.successes():
            return None
        progress.stage("measuring the best side by side")
        left = max(1.0, min(10.0, deadline - time.monotonic()))
        standings = rank(journal, evaluator, space, incumbent, (1 - DUEL_SHARE) * left)
        standings = confirmed(standings, evaluator.rank, space, incumbent, DUEL_SHARE * left)
        winner, verdict = judge(standings, space, incumbent)
        record = path = None
        unjudged = (
            incumbent is not None
            and may_be_valid(incumbent, journal, proposer)
            and incumbent not in [s.decisions for s in standings]
        )
        if not unjudged and (known is None or known.source == "nearest" or winner.decisions != incumbent):
            record = make_record(task, space, winner, verdict, known, journal, seed)
            path = records.log_path(log_dir, task.key.host, task.key.op)
            logs.append(path, record)
        verdict["record"] = record.id if record else None
        verdict["log"] = str(path) if path else None
        verdict["correlation"] = _correlation(proposer)
        verdict["stopped"] = stopped
        journal.rank(verdict)
        return _result(task, space, journal, verdict, workshop.bandwidth())


def rank(
    journal: Journal, evaluator: LocalEvaluator, space: Space, incumbent: Decisions | None, seconds: float
) -> list[Standing]:
    """Measure the fastest trials again, in turns with the default and what is used now (those of them that are valid)."""
    absent: dict[Decisions, Outcome] = {}

    def finalists() -> list[Decisions]:
        good = [t.decisions for t in journal.successes() if t.decisions not in absent]
        also = [p for p in (incumbent, space.default) if p is not None and p in good]
        return list(dict.fromkeys([*good[:FINALISTS], *also]))

    while points := finalists():
        failed = dict(evaluator.rebuild(points))
        absent |= failed
        for point, outcome in failed.items():
            if outcome.kind in INVALID:  # what took too long today may be as good as ever
                journal.skip(point, outcome)
        if not failed:
            break
    if not points:
        first = next(iter(absent.values()))
        raise ScheduleError(
            f"none of the best candidates passes the gates again; the first was rejected ({first.kind}):\n{first.message}"
        )
    samples = evaluator.rank(points, seconds)
    return [Standing(point, taken) for point, taken in zip(points, samples, strict=True)]


def may_be_valid(incumbent: Decisions, journal: Journal, proposer: MetaScheduleProposer) -> bool:
    """Whether nothing is known against what is used now: it gives way only to what was measured beside it."""
    outcome = journal.known.get(incumbent)
    return incumbent not in proposer.invalid if outcome is None else outcome.ok or outcome.kind == "timeout"


def used_now(standings: Sequence[Standing], space: Space, incumbent: Decisions | None) -> Standing | None:
    """The standing of the incumbent, else of the default."""
    by_point = {s.decisions: s for s in standings}
    return (by_point.get(incumbent) if incumbent is not None else None) or by_point.get(space.default)


def confirmed(
    standings: Sequence[Standing],
    measure: Callable[[Sequence[Decisions], float], list[list[float]]],
    space: Space,
    incumbent: Decisions | None,
    seconds: float,
) -> list[Standing]:
    """`standings`, without the challengers when the fastest of them does not win again, side by side with what is used now alone.

    The fastest of several in a few rounds may be the luckiest of them.
    """
    champion, (winner, _) = used_now(standings, space, incumbent), judge(standings, space, incumbent)
    if champion is None or winner is champion:
        return list(standings)
    points = [winner.decisions, champion.decisions]
    again = [Standing(point, samples) for point, samples in zip(points, measure(points, seconds), strict=True)]
    if beats(*again):
        return list(standings)
    if winner.decisions == space.default:
        return again
    rest = [s for s in standings if s.decisions in (champion.decisions, space.default)]
    return confirmed(rest, measure, space, incumbent, seconds)


def judge(standings: Sequence[Standing], space: Space, incumbent: Decisions | None) -> tuple[Standing, dict[str, Any]]:
    """The winner, and the ranking as a journal keeps it.

    What is used now (the incumbent, else the default) stays unless the fastest beats it by more than the spread.
    """
    fastest, champion = min(standings, key=lambda s: s.seconds), used_now(standings, space, incumbent)
    default = next((s for s in standings if s.decisions == space.default), None)
    winner = fastest if champion is None or beats(fastest, champion) else champion
    verdict = {
        "decisions": list(winner.decisions),
        "seconds": winner.seconds,
        "spread": summary(winner.samples)[1],
        "default_seconds": default.seconds if default else None,
        "before_seconds": champion.seconds if champion else None,
    }
    return winner, verdict


def make_record(
    task: Task, space: Space, winner: Standing, verdict: dict[str, Any], known: Record | None, journal: Journal, seed: int
) -> Record:
    """The record of a winner."""
    return Record(
        key=task.key,
        trace=trace_json(space.schedule(winner.decisions, task.symbolic)),
        decisions=space.values(winner.decisions),
        seconds=verdict["seconds"],
        spread=verdict["spread"],
        default_seconds=verdict["default_seconds"],
        sizes=dict(task.sizes),
        device={"name": task.key.host, "cores": cores()},
        versions=versions(),
        trials=len(journal.trials),
        seed=seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        supersedes=known.id if known and known.source != "nearest" else None,
    )


def _correlation(proposer: Proposer) -> float | None:
    return proposer.rank_correlation() if isinstance(proposer, MetaScheduleProposer) else None


def _known(task: Task, space: Space, journal: Journal, bandwidth: float) -> SearchResult:
    """The result of a search that was finished by an earlier call."""
    assert journal.ranked is not None
    return _result(task, space, journal, {**journal.ranked, "stopped": "known"}, bandwidth)


def _result(task: Task, space: Space, journal: Journal, verdict: dict[str, Any], bandwidth: float) -> SearchResult:
    return SearchResult(
        name=task.name,
        trials=len(journal.trials),
        space=space.total,
        seconds=verdict["seconds"],
        spread=verdict["spread"],
        default_seconds=verdict["default_seconds"],
        before_seconds=verdict["before_seconds"],
        decisions=space.values(verdict["decisions"]),
        stopped=verdict["stopped"],
        rejected=journal.failures(),
        correlation=verdict["correlation"],
        record=verdict["record"],
        log=Path(verdict["log"]) if verdict["log"] else None,
        history=journal.history(),
        reasons=journal.reasons(),
        traffic=traffic(task.arguments(task.sizes)),
        flops=task.flops,
        bandwidth=bandwidth,
    )
