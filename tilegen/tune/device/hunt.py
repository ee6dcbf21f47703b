"""The search of one kernel, and of an operator's kernels together, between two rounds of the search of all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tilegen.tune import records
from tilegen.tune.device.operators import Kernel, Operator
from tilegen.tune.device.propose import DeviceProposer
from tilegen.tune.engine import Candidate
from tilegen.tune.evolve import Decisions
from tilegen.tune.journal import FREE, OK, Journal, Outcome
from tilegen.tune.pool import Reply
from tilegen.tune.session import FINALISTS, journal_at, versions


class Hunt:
    """The search of one kernel."""

    def __init__(self, kernel: Kernel, owner: Staged, log_dir: Path, seed: int, resume: bool) -> None:
        self.kernel, self.owner, self.seed, self.log_dir = kernel, owner, seed, log_dir
        self.known = records.lookup(kernel.key, log_dir)
        self.incumbent = kernel.space.indices(self.known.decisions) if self.known else None
        operator = owner.operator
        meaning = {"names": kernel.space.names, "sizes": operator.sizes, "kernel": kernel.code, "versions": versions()}
        self.journal = Journal(journal_at(kernel.key, log_dir, seed), meaning, resume=resume)
        seeds = [self.incumbent] if self.incumbent is not None else []
        self.proposer = DeviceProposer(kernel.space, seeds=seeds, seed=seed)
        self.proposer.restore(self.journal.trials)
        self.proposer.known |= {*self.journal.known, kernel.space.default}  # the default is built for the stage anyway
        self.before = len(self.journal.trials)
        self.folder = Path(tempfile.mkdtemp(dir=owner.folder))
        self.ready = False
        self.error: str | None = None
        self.exhausted = bool(self.journal.ranked and self.journal.ranked["stopped"] == "exhausted")
        self.waiting: list[tuple[Candidate, dict[str, Any]]] = []
        self.libraries: dict[Decisions, str] = {}
        self.codes = dict(self.journal.codes)
        self.results: list[tuple[Candidate, Outcome]] = []
        self.best = min((t.outcome.seconds for t in self.journal.successes()), default=float("inf"))

    @property
    def place(self) -> tuple[str, int]:
        """Where the kernel is in its operator's plan."""
        return self.kernel.function, self.kernel.position

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
                return
            if twin != candidate.decisions:
                self.note(candidate, Outcome("same", message=f"makes the same code as {list(twin)}"))
            else:
                self.waiting.append((candidate, reply.value))

    def note(self, candidate: Candidate, outcome: Outcome) -> None:
        """Write an outcome down."""
        if outcome.kind in FREE:
            self.journal.skip(candidate.decisions, outcome)
        else:
            library = self.libraries.get(candidate.decisions, "")
            self.journal.add(candidate.decisions, outcome, Path(library).stem)
        self.best = min(self.best, outcome.seconds)
        self.results.append((candidate, outcome))

    def learn(self) -> None:
        """Learn from the round."""
        results, self.results = self.results, []
        self.proposer.learn(results)
        if results and not self.journal.successes() and not self.waiting:
            first = next((o for _, o in results if o.kind not in FREE), results[0][1])
            self.error = (
                f"{self.kernel.name}: none of the first {len(results)} candidates is valid; the first was rejected "
                f"({first.kind}):\n{first.message}"
            )

    def finalists(self) -> list[Decisions]:
        """The fastest trials, and the default and what is used now, those of them that are valid; none when all that is ranked."""
        if self.journal.ranked is not None:
            return []
        best = [t.decisions for t in self.journal.successes()[:FINALISTS]]
        also = [p for p in (self.incumbent, self.kernel.space.default) if p is not None]
        return list(dict.fromkeys([*best, *(p for p in also if p in self.journal.known and self.journal.known[p].ok)]))


class Staged:
    """An operator and its hunts."""

    def __init__(self, operator: Operator, folder: Path) -> None:
        self.operator, self.folder = operator, Path(tempfile.mkdtemp(dir=folder))
        self.hunts: dict[tuple[str, int], Hunt] = {}
        self.defaults: dict[tuple[str, int], str] = {}
        self.stage: Path | None = None
        self.error: str | None = None

    def take_default(self, place: tuple[str, int], reply: Reply) -> None:
        """The default of a kernel was built; with the last of them the stage can be set."""
        if reply.kind != OK or reply.value["kind"] != OK:
            message = reply.message if reply.kind != OK else reply.value["message"]
            function, position = place
            name = self.operator.functions[function].kernels[position].name
            self.error = f"the default of {function}.{name} was not built: {message}"
            return
        self.defaults[place] = reply.value["library"]
        if place in self.hunts:
            self.hunts[place].take(Candidate(self.hunts[place].kernel.space.default), reply)
        if len(self.defaults) == len(self.operator.places):
            self.stage = self.folder / "stage.json"
            self.operator.write_stage(self.defaults, self.stage)

    def active(self) -> list[Hunt]:
        """Hunts that go on."""
        return [] if self.error else [h for h in self.hunts.values() if h.error is None]

    @property
    def seconds(self) -> float:
        """What the kernels take together, the best of each; 0 before anything was measured."""
        return sum(hunt.best for hunt in self.hunts.values() if hunt.best < float("inf"))
