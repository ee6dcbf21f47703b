"""Evolution of decisions under a model, for kernels whose traces MetaSchedule cannot replay with other decisions.

A rule that finds other loops for other tiles makes traces of another shape for them; MetaSchedule's evolution ends with an
error at the first such trace.  Here the decisions themselves are varied, and only the chosen points are scheduled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Decisions = tuple[int, ...]
Score = Callable[[Sequence[Decisions]], Any]

POPULATION = 128
GENERATIONS = 6
CROSSED = 0.3
"""Share of children that take each decision from one of two parents before one decision is changed."""


def step(rng: random.Random, current: int, count: int) -> int:
    """Another category than `current`: half of the time a neighbour (categories are in order of size), else any."""
    if rng.random() < 0.5:
        near = [i for i in (current - 1, current + 1) if 0 <= i < count]
        return rng.choice(near)
    return (current + rng.randrange(1, count)) % count


def evolve(
    sizes: Sequence[int],
    measured: Mapping[Decisions, float],
    known: Collection[Decisions],
    score: Score,
    rng: random.Random,
    count: int,
) -> list[Decisions]:
    """At most `count` points not in `known`, those with the highest scores that evolution finds, the best first.

    Parameters
    ----------
    sizes : number of categories of each decision.
    measured : seconds of the points measured so far; the fastest are the first parents.
    score : what the model expects of points, higher is faster.
    """
    free = [i for i, size in enumerate(sizes) if size > 1]
    if not free:
        return []
    elite = sorted(measured, key=lambda point: measured[point])[: POPULATION // 4]
    population = list(dict.fromkeys([*elite, *(_random(sizes, rng) for _ in range(POPULATION - len(elite)))]))
    for _ in range(GENERATIONS):
        parents = _ranked(population, score)[: POPULATION // 2]
        children = [_child(parents, sizes, free, rng) for _ in range(POPULATION - len(parents))]
        population = list(dict.fromkeys([*parents, *children]))
    return [point for point in _ranked(population, score) if point not in known][:count]


def _random(sizes: Sequence[int], rng: random.Random) -> Decisions:
    return tuple(rng.randrange(size) for size in sizes)


def _ranked(points: Sequence[Decisions], score: Score) -> list[Decisions]:
    scores = [float(s) for s in score(points)]
    return [point for _, point in sorted(zip(scores, points, strict=True), key=lambda pair: -pair[0])]


def _child(parents: Sequence[Decisions], sizes: Sequence[int], free: Sequence[int], rng: random.Random) -> Decisions:
    genes = list(rng.choice(parents))
    if rng.random() < CROSSED:
        genes = [rng.choice(pair) for pair in zip(genes, rng.choice(parents), strict=True)]
    at = rng.choice(free)
    genes[at] = step(rng, genes[at], sizes[at])
    return tuple(genes)
