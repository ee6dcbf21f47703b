"""What a candidate is expected to take, learned from those measured: a sum over the decisions, corrected by boosted trees.

With a few dozen measurements the effects of single decisions are known and few of their interactions: the sum alone is right about
most, and trees alone know nothing beyond what they saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tilegen.tune.evolve import Decisions
from tilegen.tune.gate import Array

RIDGE = 0.05
"""Weight of staying near no effect: decisions seen once are believed for the most part."""

TREES = 30
ENOUGH = 24
"""Measurements from which trees are worth more than they invent."""


def one_hot(points: Sequence[Decisions], categories: Sequence[Sequence[int]]) -> Array:
    """One column for each value of each decision, and one of ones."""
    columns = [[float(p[i] == value) for p in points] for i, c in enumerate(categories) for value in c]
    return np.array([[1.0] * len(points), *columns]).T


def logs(points: Sequence[Decisions]) -> Array:
    """The values themselves, as logarithms."""
    return np.array([[math.log2(1 + abs(v)) for v in p] for p in points], np.float32)


class Model:
    """Learns the logarithm of seconds.  Deterministic."""

    def __init__(self, categories: Sequence[Sequence[int]], measured: Mapping[Decisions, float], seed: int = 0) -> None:
        self.categories, points = categories, list(measured)
        target = np.log([measured[p] for p in points])
        features = one_hot(points, categories)
        # Ridge regression around the mean; the column of ones is the mean.
        self._mean = float(target.mean())
        gram = features.T @ features + RIDGE * np.eye(features.shape[1])
        self._weights = np.linalg.solve(gram, features.T @ (target - self._mean))
        self._trees = None
        if len(points) >= ENOUGH:
            import xgboost

            rest = target - self._sum(points)
            settings = {"max_depth": 4, "eta": 0.2, "lambda": 1.0, "seed": seed, "nthread": 1, "base_score": 0.0}
            self._trees = xgboost.train(settings, xgboost.DMatrix(logs(points), rest), TREES)

    def _sum(self, points: Sequence[Decisions]) -> Array:
        found: Array = self._mean + one_hot(points, self.categories) @ self._weights
        return found

    def seconds(self, points: Sequence[Decisions]) -> Array:
        """The logarithm of the seconds expected of `points`."""
        found = self._sum(points)
        if self._trees is not None:
            import xgboost

            found = found + self._trees.predict(xgboost.DMatrix(logs(points)))
        return found
