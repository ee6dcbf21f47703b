"""The search of one kernel, and of an operator's kernels together, between two steps of the search of all."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from tilegen.tune import records
from tilegen.tune.device.operators import STEP, Kernel, Sketch
from tilegen.tune.device.propose import DeviceProposer
from tilegen.tune.engine import Candidate, Effort
from tilegen.tune.evolve import Decisions
from tilegen.tune.journal import FREE, OK, Journal, Outcome
from tilegen.tune.pool import Reply
from tilegen.tune.session import FINALISTS, journal_at, versions

FIRST_BATCH = 4
"""Candidates of each kernel beside its default before it is known which kernels of an operator are worth more."""

WORTH = 0.02
"""Part of an operator's time from which a kernel is searched on."""

STEPS_WORTH = 0.4
"""What a trial of a decoding step is worth beside one of a training step: it has few kernels, which take a few microseconds."""

BETTER = 0.99
"""What a candidate may take of the best time so far to count as an improvement."""

HOPELESS = 16
"""Candidates after which a kernel is given up when none of them is valid."""


class Hunt:
    """The search of one kernel."""

    def __init__(self, kernel: Kernel, owner: Staged, log_dir: Path, seed: int, resume: bool) -> None:
        self.kernel, self.owner, self.seed, self.log_dir = kernel, owner, seed, log_dir
        self.known = records.lookup(kernel.key, log_dir)
        self.incumbent = self._incumbent()
        operator = owner.operator
        meaning = {"names": kernel.space.names, "sizes": operator.sizes, "kernel": kernel.code, "versions": versions()}
        self.journal = Journal(journal_at(kernel.key, log_dir, seed), meaning, resume=resume)
        seeds = [self.incumbent] if self.incumbent is not None else []
        self.proposer = DeviceProposer(kernel.space, seeds=seeds, seed=seed)
        self.proposer.restore(self.journal.trials)
        self.proposer.known |= {*self.journal.known, kernel.space.default}  # the default is built for the stage anyway
        self.error: str | None = None
        self.exhausted = bool(self.journal.ranked and self.journal.ranked["stopped"] == "exhausted")
        self.proposals: deque[Candidate] = deque()
        self.waiting: deque[tuple[Candidate, dict[str, Any]]] = deque()
        self.libraries: dict[Decisions, str] = {}
        self.codes = dict(self.journal.codes)
        self.best = min((t.outcome.seconds for t in self.journal.successes()), default=float("inf"))
        self.flying = 0
        """Candidates that are proposed and have no outcome yet."""
        self.finished = False
        """Whether the ranking is done or will not be."""
        self.judging = False
        """Whether a step of the ranking is being measured."""
        self.checked: set[Decisions] = set()
        """Points whose results were compared with the references."""
        self.rebuilt: set[Decisions] = set()
        """Points of earlier calls that are being built again."""
        self._results: list[tuple[Candidate, Outcome]] = []

    @property
    def number(self) -> int:
        """Its place among all kernels of the operator."""
        return self.owner.operator.places.index(self.place)

    @property
    def place(self) -> tuple[str, int]:
        """Where the kernel is in its operator's plan."""
        return self.kernel.function, self.kernel.position

    @property
    def default_seconds(self) -> float | None:
        """What the default takes, when it was measured and is valid."""
        outcome = self.journal.known.get(self.kernel.space.default)
        return outcome.seconds if outcome is not None and outcome.ok else None

    @property
    def share(self) -> float:
        """Part of the operator's time, 0..1."""
        return min(1.0, self.best / self.owner.seconds) if self.best < float("inf") else 1.0

    def urgency(self) -> float:
        """How much the next trial is worth: all kernels get a few, then those that take long and were searched little."""
        tried = len(self.journal.trials) + self.flying
        worth = STEPS_WORTH if self.kernel.shown == STEP else 1.0
        return worth * (1e3 if tried <= FIRST_BATCH else self.share) / (1 + tried)

    def stopped(self, effort: Effort) -> str | None:
        """Why the search is over, a key of `tilegen.tune.report.STOPPED`; None: it goes on."""
        tried = len(self.journal.trials)
        if tried >= effort.trials:
            return "trials"
        if self.exhausted:
            return "exhausted"
        if tried and self.share < WORTH and self.owner.measured:
            return "small"
        return "settled" if self.stale() >= effort.patience else None

    def stale(self) -> int:
        """Trials since the last improvement."""
        best, at = float("inf"), 0
        for number, seconds in enumerate(self.journal.history(), 1):
            if seconds is not None and seconds < BETTER * best:
                best, at = seconds, number
        return len(self.journal.trials) - at

    def next(self, effort: Effort) -> Candidate | None:
        """The next candidate to build."""
        if not self.proposals and self.flying < effort.batch:
            self._learn()
            count = FIRST_BATCH if len(self.journal.trials) <= FIRST_BATCH else max(1, effort.batch // 2)
            room = effort.trials - len(self.journal.trials) - self.flying
            self.proposals += self.proposer.propose(min(count, room)) if room > 0 else []
            self.exhausted = room > 0 and not self.proposals and self.flying == 0
        if not self.proposals or self.flying >= effort.batch:
            return None
        self.flying += 1
        return self.proposals.popleft()

    def take(self, candidate: Candidate, reply: Reply) -> None:
        """A candidate was built, or was not."""
        if reply.kind != OK:
            self.note(
                candidate, Outcome("build" if reply.kind == "error" else reply.kind, message=f"while building: {reply.message}")
            )
        elif reply.value["kind"] != OK:
            self.note(candidate, Outcome(reply.value["kind"], message=reply.value["message"]))
        else:
            self.kernel.space.extend(reply.value["names"], reply.value["categories"])
            self.libraries[candidate.decisions] = reply.value["library"]
            twin = self.codes.setdefault(Path(reply.value["library"]).stem, candidate.decisions)
            if candidate.decisions in self.journal.known:
                self.flying -= 1
            elif twin != candidate.decisions:
                self.note(candidate, Outcome("same", message=f"makes the same code as {list(twin)}"))
            else:
                self.waiting.append((candidate, reply.value))

    def take_again(self, point: Decisions, reply: Reply) -> None:
        """A point that an earlier call measured was built for the ranking."""
        if reply.kind == OK and reply.value["kind"] == OK:
            self.libraries[point] = reply.value["library"]
        else:
            message = reply.message if reply.kind != OK else reply.value["message"]
            self.journal.skip(point, Outcome("build", message=f"did not build again: {message}"))

    def note(self, candidate: Candidate, outcome: Outcome) -> None:
        """Write an outcome down."""
        if outcome.kind in FREE:
            self.journal.skip(candidate.decisions, outcome)
        else:
            library = self.libraries.get(candidate.decisions, "")
            self.journal.add(candidate.decisions, outcome, Path(library).stem)
        self.flying -= 1
        self.best = min(self.best, outcome.seconds)
        self._results.append((candidate, outcome))
        self._give_up()

    def reject(self, point: Decisions, outcome: Outcome) -> None:
        """A trial turned out not to be valid when it was about to be ranked."""
        self.journal.skip(point, outcome)
        self.proposer.learn([(Candidate(point), outcome)])
        self.best = min((t.outcome.seconds for t in self.journal.successes()), default=float("inf"))
        self._give_up()

    def finalists(self) -> list[Decisions]:
        """What is to be ranked: the fastest trials, the default and what is used now; nothing when the last ranking still holds."""
        good = self.journal.successes()
        verdict, known = self.journal.verdict, self.journal.known
        best, also = [t.decisions for t in good[:FINALISTS]], [self.incumbent, self.kernel.space.default]
        if verdict is not None and (old := tuple(verdict["decisions"])) in known and known[old].ok:
            limit = next((t.outcome.seconds for t in good if t.decisions == old), verdict["seconds"])
            newer = [t for t in good if t.number > self.journal.ranked_after and t.outcome.seconds < limit]
            if not newer:
                return []
            best, also = [t.decisions for t in newer[:FINALISTS]], [old, *also]
        if not good:
            return []
        return list(dict.fromkeys([*best, *(p for p in also if p is not None and (p not in known or known[p].ok))]))

    def _incumbent(self) -> Decisions | None:
        """What is used now, when it is of this space."""
        if self.known is None or [name for name, _ in self.known.trace] != self.kernel.space.names:
            return None
        return tuple(int(value) for value in self.known.decisions)

    def _learn(self) -> None:
        results, self._results = self._results, []
        self.proposer.learn(results)

    def _give_up(self) -> None:
        """End a search in which nothing is valid."""
        bad = {point: outcome for point, outcome in self.journal.known.items() if not outcome.ok}
        tried = [outcome for outcome in bad.values() if outcome.kind not in FREE]
        if self.journal.successes() or (len(tried) <= FIRST_BATCH and len(bad) < HOPELESS):
            return
        first = tried[0] if tried else next(iter(bad.values()))
        self.error = (
            f"{self.kernel.name}: none of the first {len(bad)} candidates is valid; the first was rejected "
            f"({first.kind}):\n{first.message}"
        )


class Staged:
    """An operator and its hunts."""

    def __init__(self, operator: Sketch, folder: Path) -> None:
        self.operator, self.folder = operator, Path(tempfile.mkdtemp(dir=folder))
        self.hunts: dict[tuple[str, int], Hunt] = {}
        self.defaults: dict[tuple[str, int], str] = {}
        self.stage: Path | None = None
        self.cases: Path | None = None
        self.error: str | None = None

    @property
    def topic(self) -> str:
        """What processes know that set its stage."""
        return str(self.folder)

    def take_default(self, place: tuple[str, int], reply: Reply) -> None:
        """The default of a kernel was built; with the last of them the stage can be set."""
        if reply.kind != OK or reply.value["kind"] != OK:
            message = reply.message if reply.kind != OK else reply.value["message"]
            self.error = f"the default of {place[0]}.{self.operator.called[place]} was not built: {message}"
            return
        self.defaults[place] = reply.value["library"]
        if place in self.hunts:
            self.hunts[place].flying += 1
            self.hunts[place].take(Candidate(self.hunts[place].kernel.space.default), reply)
        if len(self.defaults) == len(self.operator.places):
            self.stage = self.folder / "stage.json"
            self.operator.write_stage(self.defaults, self.stage)

    def checked(self) -> list[str]:
        """The stages at sizes with references; none before there are defaults and references."""
        if self.stage is None or self.cases is None:
            return []
        found = []
        for name in self.operator.checks():
            path = self.folder / f"{name}.json"
            if not path.exists():
                self.operator.write_stage(self.defaults, path, name, self.cases / name)
            found.append(str(path))
        return found

    def active(self) -> list[Hunt]:
        """Hunts that go on."""
        return [] if self.error else [h for h in self.hunts.values() if h.error is None and not h.finished]

    @property
    def seconds(self) -> float:
        """What the kernels take together, the best of each; 0 before anything was measured."""
        return sum(hunt.best for hunt in self.hunts.values() if hunt.best < float("inf"))

    @property
    def measured(self) -> bool:
        """Whether the time of every kernel is known, so that their parts are."""
        return all(hunt.best < float("inf") or hunt.error for hunt in self.hunts.values())
