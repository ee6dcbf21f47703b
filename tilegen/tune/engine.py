"""The loop of a search: propose, build and measure, write down, learn.

Who proposes (MetaSchedule) and who measures (worker processes) are arguments, so that everything a search promises
about budgets, resuming and failures is tested in milliseconds, without a compiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tilegen.errors import ArgumentError, ScheduleError
from tilegen.tune.journal import Journal, Outcome, Trial


@dataclass(frozen=True)
class Candidate:
    """One point of a search space: the index chosen at each decision, and what the evaluator needs to build it."""

    decisions: tuple[int, ...]
    payload: Any = None


class Proposer(Protocol):
    """Chooses what to try next."""

    def restore(self, trials: Sequence[Trial]) -> None:
        """Learn from the trials of an earlier run."""

    def propose(self, count: int) -> list[Candidate]:
        """At most `count` candidates that were not proposed before; none when the space is exhausted."""

    def learn(self, results: Sequence[tuple[Candidate, Outcome]]) -> None:
        """Take the outcome of a batch into account."""


class Evaluator(Protocol):
    """Builds, checks and measures candidates."""

    def evaluate(self, batch: Sequence[Candidate], deadline: float) -> Iterator[tuple[Candidate, Outcome]]:
        """Yield each candidate with its outcome, in any order; give up what is not done by `deadline` (monotonic)."""


@dataclass(frozen=True)
class Effort:
    """How long to search: trials per kernel and minutes for the whole call, whichever is reached first.

    `patience`: trials without an improvement after which a kernel's search on a GPU ends.
    """

    trials: int
    minutes: float
    batch: int = 16
    patience: int = 64

    def limit(self, trials: int | None, minutes: float | None) -> Effort:
        """This effort with the user's own limits; a limit given alone lifts the preset's other one."""
        if trials is not None and trials < 1:
            raise ArgumentError(f"trials is {trials}, must be at least 1")
        if minutes is not None and not minutes > 0:
            raise ArgumentError(f"minutes is {minutes}, must be positive")
        if trials is None and minutes is None:
            return self
        return Effort(trials or UNLIMITED, minutes or float("inf"), self.batch, self.patience)


UNLIMITED = 1_000_000
EFFORTS = {"quick": Effort(32, 2.0, 8, 24), "default": Effort(128, 10.0), "max": Effort(1024, 120.0, patience=256)}
"""The presets of ``--effort``."""


def effort(name: str, trials: int | None = None, minutes: float | None = None) -> Effort:
    """The preset called `name`, with the user's own limits."""
    if name not in EFFORTS:
        raise ArgumentError(f"effort is {name!r}, must be one of {', '.join(EFFORTS)}")
    return EFFORTS[name].limit(trials, minutes)


def explore(
    proposer: Proposer,
    evaluator: Evaluator,
    journal: Journal,
    *,
    trials: int,
    deadline: float = float("inf"),
    batch: int = 16,
    watch: Callable[[Trial], None] = lambda trial: None,
) -> str:
    """Search until the journal has `trials` trials or the monotonic clock reads `deadline`.

    Returns why it ended: "trials", "time", "exhausted" (nothing new is left in the space) or "failing" (a whole batch
    was rejected after earlier successes).

    Raises
    ------
    ScheduleError
        When no candidate of the first batch passed the gates; the message has the first rejection in full.
    """
    proposer.restore(journal.trials)
    while len(journal.trials) < trials:
        if time.monotonic() >= deadline:
            return "time"
        candidates = proposer.propose(min(batch, trials - len(journal.trials)))
        if not candidates:
            return "exhausted"
        results = []
        for candidate, outcome in evaluator.evaluate(candidates, deadline):
            watch(journal.add(candidate.decisions, outcome))
            results.append((candidate, outcome))
        if time.monotonic() < deadline:  # else nobody will ask the model again, and training takes time
            proposer.learn(results)
        if not any(outcome.ok for _, outcome in results) and len(results) == len(candidates):
            if not journal.successes():
                kind, message = results[0][1].kind, results[0][1].message
                raise ScheduleError(
                    f"none of the first {len(results)} candidates is valid; the first was rejected ({kind}):\n{message}"
                )
            if len(results) >= batch:
                return "failing"
    return "trials"
