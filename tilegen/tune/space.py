"""The search space of a kernel: the decisions that its schedule rule samples, and the schedule that a choice makes.

A rule samples with ``sch.sample_categorical`` only.  MetaSchedule replays the trace of one run of the rule with other
decisions, so a rule must not compute with the sampled values in Python: what it computed would stay as it was in that run.
`Space` checks this once per kernel, because the result would be a valid schedule of something else.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import s_tir  # noqa: E402
from tvm.ir.utils import derived_object  # noqa: E402
from tvm.s_tir import meta_schedule as ms  # noqa: E402
from tvm.s_tir.schedule import Trace  # noqa: E402

from tilegen.errors import ScheduleError  # noqa: E402

SpaceFn = Callable[[s_tir.Schedule], None]
Decisions = tuple[int, ...]

CATEGORICAL = "SampleCategorical"
_ATTEMPTS = 64
"""Runs of a rule with random decisions before its space is called empty."""


def sampled(trace: Trace) -> list[Any]:
    """The sampling instructions of a trace, in order."""
    found = [inst for inst in trace.insts if str(inst.kind.name).startswith("Sample")]
    for inst in found:
        if inst.kind.name != CATEGORICAL:
            raise ScheduleError(f"the rule samples with {inst.kind.name}, must be sample_categorical: nothing else is searched")
    return found


def decisions_of(trace: Trace) -> Decisions:
    """The index chosen at each sampling instruction."""
    return tuple(int(trace.decisions[inst]) for inst in sampled(trace))


def plain(value: Any) -> Any:
    """A trace's JSON as Python lists, strings and numbers."""
    if isinstance(value, bool | int | float | str) or value is None:
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "__iter__"):
        return [plain(v) for v in value]
    return plain(value.value)  # IntImm, FloatImm


class Space:
    """The decisions of one kernel and what they mean.

    Parameters
    ----------
    mod : module whose function "main" is scheduled.
    rule : applies primitives to a schedule of it; its default is the first category everywhere.

    Attributes
    ----------
    categories : the candidates at each decision.
    total : number of points, valid or not.

    Raises
    ------
    ScheduleError
        When the rule fails for every choice tried, samples anything but categories, or computes with sampled values.
    """

    def __init__(self, mod: tvm.IRModule, rule: SpaceFn) -> None:
        self.mod, self.rule = mod, rule
        runs = self._runs()
        first = next(runs)
        self.categories: list[list[int]] = [[int(c) for c in inst.attrs[0]] for inst in sampled(first.trace)]
        self.total = math.prod(len(c) for c in self.categories)
        self._instructions = plain(first.trace.as_json())[0]
        for other in itertools.islice(runs, 3):
            self._check(other)

    @property
    def default(self) -> Decisions:
        """The first category everywhere."""
        return (0,) * len(self.categories)

    def trace(self, decisions: Sequence[int]) -> list[Any]:
        """The trace of a point as JSON: what a record holds."""
        spots = [i for i, inst in enumerate(self._instructions) if inst[0] == CATEGORICAL]
        return [self._instructions, [[spot, int(d)] for spot, d in zip(spots, decisions, strict=True)]]

    def values(self, decisions: Sequence[int]) -> list[int]:
        """The category chosen at each decision."""
        return [c[d] for c, d in zip(self.categories, decisions, strict=True)]

    def indices(self, values: Sequence[int]) -> Decisions | None:
        """The point with these categories, or None when the space has no such point."""
        if len(values) != len(self.categories) or any(v not in c for v, c in zip(values, self.categories, strict=True)):
            return None
        return tuple(c.index(v) for v, c in zip(values, self.categories, strict=True))

    def schedule(self, decisions: Sequence[int], mod: tvm.IRModule | None = None) -> s_tir.Schedule:
        """The schedule of a point, of this space's module or of another with the same blocks (symbolic sizes).

        Raises
        ------
        ScheduleError
            When the primitives do not apply.
        """
        return replay(self.trace(decisions), self.mod if mod is None else mod)

    def points(self, rng: random.Random, known: set[Decisions]) -> Iterator[Decisions]:
        """Points not in `known`, in random order: all of a small space, as many as can be drawn of a large one."""
        if self.total <= 4096:
            rest = [p for p in itertools.product(*(range(len(c)) for c in self.categories)) if p not in known]
            rng.shuffle(rest)
            yield from rest
            return
        for _ in range(4096):
            point = tuple(rng.randrange(len(c)) for c in self.categories)
            if point not in known:
                yield point

    def _runs(self) -> Iterator[s_tir.Schedule]:
        """Runs of the rule itself with random decisions that fit."""
        error: Exception | None = None
        found = False
        for seed in range(1, _ATTEMPTS + 1):
            sch = s_tir.Schedule(self.mod, seed=seed, debug_mask=0, error_render_level="fast")
            try:
                self.rule(sch)
                sch.trace.as_json()
            except Exception as caught:  # the rule may raise anything for a choice that does not fit
                error = caught
                continue
            found = True
            yield sch
        if not found:
            raise ScheduleError(f"the schedule rule failed for all of {_ATTEMPTS} random choices; the last: {error}") from error

    def _check(self, run: s_tir.Schedule) -> None:
        """A run of the rule must be what replaying the first run with its decisions gives."""
        again = self.schedule(decisions_of(run.trace))
        if not tvm_ffi.structural_equal(run.mod, again.mod):
            raise ScheduleError(
                "the schedule rule computes with sampled values in Python, so that its trace cannot be replayed with other "
                "decisions; pass the sampled values to primitives as they are (split twice instead of dividing)"
            )


def replay(trace: list[Any], mod: tvm.IRModule) -> s_tir.Schedule:
    """`mod` scheduled by a trace's JSON.

    Raises
    ------
    ScheduleError
        When the trace does not fit the module.
    """
    sch = s_tir.Schedule(mod, debug_mask=0, error_render_level="fast")
    try:
        Trace.apply_json_to_schedule(json.loads(json.dumps(trace)), sch)
    except Exception as error:
        raise ScheduleError(f"the trace does not fit the kernel: {str(error).strip().splitlines()[-1]}") from error
    return sch


def step(rng: random.Random, current: int, count: int) -> int:
    """Another category than `current`: half of the time a neighbour (categories are in order of size), else any."""
    if rng.random() < 0.5:
        near = [i for i in (current - 1, current + 1) if 0 <= i < count]
        return rng.choice(near)
    return (current + rng.randrange(1, count)) % count


def mutate(trace: Trace, seed: int) -> Trace | None:
    """`trace` with one categorical decision changed, or None when it has none to change."""
    choices = [inst for inst in sampled(trace) if len(inst.attrs[0]) > 1]
    if not choices:
        return None
    rng = random.Random(seed)
    inst = rng.choice(choices)
    return trace.with_decision(inst, step(rng, int(trace.decisions[inst]), len(inst.attrs[0])), True)


@derived_object
class CategoricalMutator(ms.mutator.PyMutator):
    """`mutate` for MetaSchedule, whose own mutators change no categorical decision."""

    def __init__(self) -> None:
        super().__init__()

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Trace, seed: int) -> Trace | None:
        """The mutated trace; `seed` comes from the search, so that equal seeds make equal searches."""
        return mutate(trace, int(seed))

    def clone(self) -> Any:
        return CategoricalMutator()
