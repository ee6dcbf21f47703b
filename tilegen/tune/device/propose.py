"""What to try next on a GPU: the default, what differs from it in one decision, then evolution under a model.

MetaSchedule's strategies propose traces of schedule primitives; kernels for GPUs are written by lowerings and have none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from tilegen.tune.device.model import Model
from tilegen.tune.device.space import DecisionSpace
from tilegen.tune.engine import Candidate
from tilegen.tune.evolve import Decisions, evolve
from tilegen.tune.journal import Outcome, Trial
from tilegen.tune.search import spearman

EXPLORE = 0.15
"""Share of a batch that is drawn at random, so that a wrong model is found out."""

FAILED = 4.0
"""Times the slowest measurement that a candidate which does not work is taken for."""


class DeviceProposer:
    """Proposes the candidates of one kernel.

    Parameters
    ----------
    seeds : points to propose after the default, such as the winner on another device.
    seed : equal seeds and equal outcomes give equal searches.
    """

    def __init__(self, space: DecisionSpace, *, seeds: Sequence[Decisions] = (), seed: int = 0) -> None:
        self.space, self.seed, self.random = space, seed, random.Random(seed)
        self.known: set[Decisions] = set()
        self.measured: dict[Decisions, float] = {}
        self.failed: set[Decisions] = set()
        self._first = list(dict.fromkeys([space.default, *seeds, *space.around(space.default)]))
        self._predicted: dict[Decisions, float] = {}
        self._correlations: list[float] = []

    def restore(self, trials: Sequence[Trial]) -> None:
        """Learn from the trials of an earlier run."""
        self.random.seed(self.seed + len(trials))
        self.learn([(Candidate(trial.decisions), trial.outcome) for trial in trials])

    def propose(self, count: int) -> list[Candidate]:
        """At most `count` points that were not proposed before; none when the space is exhausted."""
        found: list[Decisions] = []
        while self._first and len(found) < count:
            self._add(self._first.pop(0), found)
        if len(found) < count and len(self.measured) > 2:
            self._model(found, count)
        for point in self.space.points(self.random, self.known):
            if len(found) >= count:
                break
            self._add(point, found)
        return [Candidate(point) for point in found]

    def learn(self, results: Sequence[tuple[Candidate, Outcome]]) -> None:
        """Take outcomes into account."""
        pairs = []
        for candidate, outcome in results:
            point = candidate.decisions
            self.known.add(point)
            if outcome.ok:
                self.measured[point] = outcome.seconds
                if point in self._predicted:
                    pairs.append((self._predicted[point], outcome.seconds))
            else:
                self.failed.add(point)
        if len(pairs) >= 4 and len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1:
            self._correlations.append(spearman(*zip(*pairs, strict=True)))

    def rank_correlation(self) -> float | None:
        """Spearman's correlation between predicted and measured seconds within a batch, the mean over the batches.

        In -1..1; None before the model has predicted a batch.
        """
        return sum(self._correlations) / len(self._correlations) if self._correlations else None

    def _model(self, found: list[Decisions], count: int) -> None:
        """What evolution finds under the model; a share of the batch is left to chance."""
        categories, seconds = self.space.categories, dict(self.measured)
        seconds |= dict.fromkeys((p for p in self.failed if self._inside(p)), FAILED * max(self.measured.values()))
        seconds = {p: s for p, s in seconds.items() if self._inside(p)}
        model, wanted = Model(categories, seconds, self.seed), max(1, round((1 - EXPLORE) * (count - len(found))))

        def outside(point: Decisions) -> Decisions:
            return tuple(c[i] for c, i in zip(categories, point, strict=True))

        def inside(point: Decisions) -> Decisions:
            return tuple(c.index(v) for c, v in zip(categories, point, strict=True))

        def score(points: Sequence[Decisions]) -> list[float]:
            return [-float(s) for s in model.seconds([outside(p) for p in points])]

        parents = {inside(p): s for p, s in self.measured.items() if self._inside(p)}
        known = {inside(p) for p in self.known if self._inside(p)}
        before = len(found)
        for point in evolve([len(c) for c in categories], parents, known, score, self.random, 2 * wanted):
            if len(found) - before < wanted:
                self._add(outside(point), found)
        chosen = found[before:]
        if chosen:
            self._predicted |= dict(zip(chosen, np.exp(model.seconds(chosen)).tolist(), strict=True))

    def _inside(self, point: Decisions) -> bool:
        return len(point) == len(self.space.categories) and all(v in c for v, c in zip(point, self.space.categories, strict=True))

    def _add(self, point: Decisions, found: list[Decisions]) -> None:
        if point not in self.known:
            self.known.add(point)
            found.append(point)
