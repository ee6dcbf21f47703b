"""The search space of a kernel: the decisions that its schedule rule samples, and the schedule that a choice makes.

A rule samples with ``sch.sample_categorical`` only, always the same number of times from the same categories.  A point of
the space is scheduled by running the rule itself with these decisions, as a build does.  MetaSchedule's own way, replaying
the trace of one run with other decisions, is used only to propose points: a trace stays as that run made it where a rule
counts loops or looks at a sampled value.
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
from tvm import s_tir  # noqa: E402
from tvm.ir.utils import derived_object  # noqa: E402
from tvm.s_tir import meta_schedule as ms  # noqa: E402
from tvm.s_tir.schedule import Trace  # noqa: E402

from tilegen.errors import ScheduleError  # noqa: E402
from tilegen.tune.evolve import Decisions, step  # noqa: E402

SpaceFn = Callable[[s_tir.Schedule], None]

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


class Choosing:
    """A schedule for a rule to work on, in which `choose` makes the decisions: position and categories -> index."""

    def __init__(self, sch: s_tir.Schedule, choose: Callable[[int, list[int]], int]) -> None:
        self._sch, self._choose = sch, choose
        self.categories: list[list[int]] = []

    def sample_categorical(self, candidates: Sequence[int], probs: Sequence[float], decision: int | None = None) -> Any:
        """As of a schedule, with the decision made here."""
        known = [int(c) for c in candidates]
        index = self._choose(len(self.categories), known)
        self.categories.append(known)
        return self._sch.sample_categorical(list(candidates), list(probs), decision=index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sch, name)


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
        When the rule fails for every choice tried, or samples anything but categories.
    """

    def __init__(self, mod: tvm.IRModule, rule: SpaceFn) -> None:
        self.mod, self.rule = mod, rule
        self.categories = self._explore()
        self.total = math.prod(len(c) for c in self.categories)

    @property
    def default(self) -> Decisions:
        """The first category everywhere."""
        return (0,) * len(self.categories)

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
            When the primitives do not apply, or the rule samples otherwise than before.
        """
        sch = _fresh(self.mod if mod is None else mod)
        choosing = Choosing(sch, lambda position, _: decisions[position] if position < len(decisions) else 0)
        try:
            self.rule(choosing)  # type: ignore[arg-type]
        except Exception as error:  # a rule may raise anything for a choice that does not fit
            raise ScheduleError(f"{self.values(decisions)} does not fit: {_last_line(error)}") from error
        if choosing.categories != self.categories:
            raise ScheduleError(
                f"the schedule rule samples {choosing.categories} with the decisions {list(decisions)} and {self.categories} with "
                "others; it must sample the same categories whatever it drew before"
            )
        return sch

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

    def _explore(self) -> list[list[int]]:
        """The categories, from the first run of the rule that fits: its default, else one with random decisions."""
        rng = random.Random(0)
        for attempt in range(_ATTEMPTS):
            sch = _fresh(self.mod)
            choosing = Choosing(sch, lambda _, categories, first=attempt == 0: 0 if first else rng.randrange(len(categories)))
            try:
                self.rule(choosing)  # type: ignore[arg-type]
            except Exception as error:  # a rule may raise anything for a choice that does not fit
                last = error
                continue
            if len(sampled(sch.trace)) != len(choosing.categories):
                raise ScheduleError("the rule samples behind the schedule it was given; it must call sch.sample_categorical")
            return choosing.categories
        raise ScheduleError(f"the schedule rule failed for all of {_ATTEMPTS} choices; the last: {_last_line(last)}") from last


def _fresh(mod: tvm.IRModule) -> s_tir.Schedule:
    return s_tir.Schedule(mod, debug_mask=0, error_render_level="fast")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def trace_json(sch: s_tir.Schedule) -> list[Any]:
    """The trace of a schedule as plain JSON values: what a record holds."""
    found: list[Any] = plain(sch.trace.as_json())
    return found


def replay(trace: list[Any], mod: tvm.IRModule) -> s_tir.Schedule:
    """`mod` scheduled by a trace's JSON.

    Raises
    ------
    ScheduleError
        When the trace does not fit the module.
    """
    sch = _fresh(mod)
    try:
        Trace.apply_json_to_schedule(json.loads(json.dumps(trace)), sch)
    except Exception as error:
        raise ScheduleError(f"the trace does not fit the kernel: {_last_line(error)}") from error
    return sch


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
