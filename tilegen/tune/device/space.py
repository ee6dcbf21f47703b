"""The decisions of a rule for a GPU as a search space."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tilegen.tune.evolve import Decisions

ENUMERATED = 4096
"""Points of a space that are listed rather than drawn."""


class DecisionSpace:
    """The decisions of one kernel.  A point is the value of each decision, in the order in which the rule asks.

    What may be chosen is what the rule offers beside its default; what it offers beside other choices comes in as candidates are built
    (`extend`).  Whether a point is possible is found out by the process that builds it.

    Attributes
    ----------
    names, categories : the decisions, and what can be chosen for each, the default first.
    """

    def __init__(self, names: Sequence[str], categories: Sequence[Sequence[int]]) -> None:
        self.names = list(names)
        self.categories = [list(c) for c in categories]

    @property
    def default(self) -> Decisions:
        """What the rule chooses itself."""
        return tuple(c[0] for c in self.categories)

    @property
    def total(self) -> int:
        """Number of points, possible or not."""
        return math.prod(len(c) for c in self.categories)

    def values(self, point: Sequence[int]) -> list[int]:
        """The value of each decision."""
        return list(point)

    def indices(self, values: Sequence[Any]) -> Decisions | None:
        """The point with these values; None when it is not of this space."""
        point = tuple(int(v) for v in values)
        fits = len(point) == len(self.categories) and all(v in c for v, c in zip(point, self.categories, strict=True))
        return point if fits else None

    def extend(self, names: Sequence[str], categories: Sequence[Sequence[int]]) -> None:
        """Add what a rule offered beside other choices than its default."""
        if list(names) == self.names:
            for known, offered in zip(self.categories, categories, strict=True):
                known += [value for value in offered if value not in known]

    def around(self, point: Decisions) -> Iterator[Decisions]:
        """The points that differ in one decision, the nearest value of each decision first."""
        ordered = [
            sorted((v for v in c if v != point[i]), key=lambda v, i=i: abs(math.log2(1 + abs(v)) - math.log2(1 + abs(point[i]))))  # type: ignore[misc]
            for i, c in enumerate(self.categories)
        ]
        for row in itertools.zip_longest(*ordered):
            for i, value in enumerate(row):
                if value is not None:
                    yield (*point[:i], value, *point[i + 1 :])

    def points(self, rng: random.Random, known: Collection[Decisions]) -> Iterator[Decisions]:
        """Points not in `known`, in random order: all of a small space, as many as can be drawn of a large one."""
        if self.total <= ENUMERATED:
            rest = [p for p in itertools.product(*self.categories) if p not in known]
            rng.shuffle(rest)
            yield from rest
            return
        for _ in range(ENUMERATED):
            point = tuple(rng.choice(c) for c in self.categories)
            if point not in known:
                yield point
