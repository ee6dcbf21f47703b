"""What to try next: MetaSchedule's evolutionary search with its gradient-boosted cost model, driven one batch at a time.

TVM's own task scheduler owns the loop, the clock and the files of a search.  Here only the two parts that choose are used,
so that every trial passes through the journal: a killed search is rebuilt from it, and nothing is measured twice.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from tilegen.tune.space import CategoricalMutator, Decisions, Space, decisions_of

# isort: split
import numpy as np
import tvm
import tvm_ffi
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate
from tvm.target import Target

from tilegen.errors import ScheduleError
from tilegen.tune.engine import Candidate
from tilegen.tune.evolve import evolve
from tilegen.tune.journal import Outcome, Trial

POPULATION = 128
"""Traces evolved per batch; a replay costs 1-5 ms, so more would take longer than measuring."""

EXPLORE = 0.15
"""Share of a batch that is drawn at random, so that a wrong model is found out."""

_FAILED = 1e10  # seconds; what MetaSchedule's cost model takes for a candidate that did not run
_UNLIMITED = 1 << 30


WARM_UP = 2
"""Measurements before the model is asked; TVM's own 100 would leave a quick search without any."""


@derived_object
class DecisionFeatures(ms.feature_extractor.PyFeatureExtractor):
    """Features of a candidate: its decisions, as positions and as logarithms.

    MetaSchedule's features of each store need thousands of measurements to tell a tile's size from its consequences, and
    are summed over the stores; within one kernel the decisions themselves say all there is.
    """

    def __init__(self, categories: list[list[int]]) -> None:
        super().__init__()
        self.categories = categories

    def extract_from(self, context: Any, candidates: Any) -> list[Any]:
        """One array [1, 2 * decisions] of float32 per candidate."""
        return [tvm.runtime.tensor(self.row(decisions_of(c.sch.trace))) for c in candidates]

    def row(self, decisions: Decisions) -> Any:
        """The features of one candidate."""
        if len(decisions) != len(self.categories):
            # MetaSchedule drops a sampled value that no primitive uses: nothing is known of this trace.
            decisions = (0,) * len(self.categories)
        return feature_row(self.categories, decisions)


def feature_row(categories: list[list[int]], decisions: Decisions) -> Any:
    """The features of one point, [1, 2 * decisions] of float32."""
    values = [float(c[d]) for c, d in zip(categories, decisions, strict=True)]
    logs = [math.copysign(math.log2(1 + abs(v)), v) for v in values]
    return np.array([[*decisions, *logs]], np.float32)


def cost_model(kind: str, space: Space, seed: int) -> Any:
    """ "xgb" on the decisions, or "random"."""
    if kind == "random":
        return ms.cost_model.RandomModel(seed=seed)
    config = ms.cost_model.xgb_model.XGBConfig(max_depth=6, seed=seed, nthread=1)
    features = DecisionFeatures(space.categories)
    return ms.cost_model.XGBModel(extractor=features, config=config, num_warmup_samples=WARM_UP, early_stopping_rounds=20)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of the ranks of two sequences; equal values share the mean of their ranks."""

    def ranks(values: Sequence[float]) -> Any:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts + 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@contextlib.contextmanager
def _light_import(kind: str) -> Iterator[None]:
    """On a CPU, keep `ms.TuneContext` from parsing 250 intrinsics for matrix units: 3 s, and no rule for CPUs names one."""
    name = "tvm.s_tir.tensor_intrin"
    if kind != "llvm" or name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


class MetaScheduleProposer:
    """Proposes candidates for one kernel.  A candidate's payload is its `tvm.s_tir.Schedule`.

    Parameters
    ----------
    space : the search space, of a module with static sizes (the cost model reads loop extents).
    target : what the cost model and MetaSchedule's checks are told about the machine.
    seeds : points to propose first, such as the winner on another device.  The default always comes first of all.
    seed : equal seeds and equal outcomes give equal searches.
    model : "xgb", or "random" for a search that learns nothing.
    postprocs : MetaSchedule post-processors that reject invalid schedules early (``VerifyGPUCode``).
    """

    def __init__(
        self,
        space: Space,
        target: Target,
        *,
        seeds: Sequence[Decisions] = (),
        seed: int = 0,
        model: str = "xgb",
        batch: int = 16,
        postprocs: Sequence[Any] = (),
    ) -> None:
        self.space, self.target, self.model, self.batch = space, target, model, batch
        self.random = random.Random(seed)
        self.proposed: set[Decisions] = set()
        self.invalid: dict[Decisions, str] = {}
        """Points whose primitives do not apply, with the reason; they cost no trial."""
        self._seen: dict[Any, Decisions] = {}
        self._first = list(dict.fromkeys([space.default, *seeds]))
        self._predicted: dict[Decisions, float] = {}
        self._correlations: list[float] = []
        spaces = ms.space_generator.ScheduleFn(
            space.rule, sch_rules=[], postprocs=list(postprocs), mutator_probs={CategoricalMutator(): 1.0}
        )
        self._strategy = ms.search_strategy.EvolutionarySearch(
            population_size=min(POPULATION, max(8, space.total)),
            init_min_unmeasured=1,
            genetic_num_iters=3,
            genetic_mutate_prob=0.85,
            eps_greedy=EXPLORE,
        )
        with _light_import(str(target.kind.name)):
            self._context = ms.TuneContext(
                mod=space.mod,
                target=target,
                space_generator=spaces,
                search_strategy=self._strategy,
                task_name="main",
                num_threads=1,  # the mutator is Python: threads would only wait for each other
                rand_state=seed + 1,
            )
        self._database = ms.database.MemoryDatabase()
        self._workload = self._database.commit_workload(space.mod)
        self._cost_model = cost_model(model, space, seed)
        self._evolving = self._learned = False
        self._replays = True
        self._seconds: dict[Decisions, float] = {}

    def restore(self, trials: Sequence[Trial]) -> None:
        """Learn from the trials of an earlier run of this search."""
        results = []
        for trial in trials:
            try:
                results.append((Candidate(trial.decisions, self._schedule(trial.decisions)), trial.outcome))
            except ScheduleError:
                continue
        self.random.seed(self.random.random() + len(trials))
        if results:
            self.learn(results)

    def propose(self, count: int) -> list[Candidate]:
        """At most `count` new candidates: seeds first, then what evolution finds, then any point not tried yet."""
        found: list[Candidate] = []
        while self._first and len(found) < count:
            self._add(self._first.pop(0), found)
        if self._evolving and len(found) < count:
            self._evolve(found, count)
        if self._learned and not self._replays and len(found) < count:
            self._evolve_decisions(found, count)
        for point in self.space.points(self.random, self.proposed | set(self.invalid)):
            if len(found) >= count:
                break
            self._add(point, found)
        self._note_predictions(found)
        return found

    def learn(self, results: Sequence[tuple[Candidate, Outcome]]) -> None:
        """Store the outcomes and train the cost model on them."""
        measured, runs = [], []
        self._compare_predictions(results)
        for candidate, outcome in results:
            self.proposed.add(candidate.decisions)
            schedule = candidate.payload
            info = ArgInfo.from_prim_func(schedule.mod["main"])
            seconds = [outcome.seconds] if outcome.ok else [_FAILED]
            if outcome.ok:
                self._seconds[candidate.decisions] = outcome.seconds
                record = ms.database.TuningRecord(schedule.trace, self._workload, seconds, self.target, info)
                self._database.commit_tuning_record(record)
            measured.append(MeasureCandidate(schedule, info))
            runs.append(ms.runner.RunnerResult(seconds, None if outcome.ok else outcome.kind))
        if not measured:
            return
        if not self._replays:
            pass
        elif not self._evolving:
            # Several traces to evolve from: they differ where the rule does other things for other decisions.
            spaces = [candidate.sch for candidate in measured]
            self._strategy.pre_tuning(_UNLIMITED, self.batch, spaces, self._database, self._cost_model)
        else:
            self._strategy.notify_runner_results(measured, runs)
        self._cost_model.update(self._context, measured, runs)
        self._evolving, self._learned = self._replays, True

    def _evolve(self, found: list[Candidate], count: int) -> None:
        try:
            proposals = self._strategy.generate_measure_candidates()
        except Exception:  # a trace that does not replay ends MetaSchedule's evolution with whatever its primitive raises
            self._replays = self._evolving = False
            return
        if proposals is None:  # it found nothing new in several rounds; `points` knows whether anything is left
            self._evolving = False
            self._strategy.post_tuning()
            return
        for proposal in proposals:
            point = decisions_of(proposal.sch.trace)
            if len(found) < count and len(point) == len(self.space.categories):
                self._add(point, found)

    def _evolve_decisions(self, found: list[Candidate], count: int) -> None:
        """The same without traces, see `tilegen.tune.evolve`; a share of the batch is left to chance."""
        wanted = max(1, round((1 - EXPLORE) * (count - len(found))))
        sizes, known = [len(c) for c in self.space.categories], self.proposed | set(self.invalid)
        for point in evolve(sizes, self._seconds, known, self._score, self.random, 2 * wanted):
            if wanted > 0 and point not in self.proposed:
                before = len(found)
                self._add(point, found)
                wanted -= len(found) - before

    def _score(self, points: Sequence[Decisions]) -> Any:
        """What the model expects of points, higher is faster; 0 before it was trained."""
        booster = getattr(self._cost_model, "booster", None) if self.model == "xgb" else None
        if booster is None:
            return [0.0] * len(points)
        import xgboost

        return booster.predict(xgboost.DMatrix(np.concatenate([feature_row(self.space.categories, p) for p in points])))

    def _add(self, point: Decisions, found: list[Candidate]) -> None:
        """Append the candidate of `point`, unless it is known, does not apply, or makes the same code as a known one."""
        if point in self.proposed or point in self.invalid:
            return
        try:
            schedule = self._schedule(point)
        except ScheduleError as error:
            self.invalid[point] = str(error)
            return
        self.proposed.add(point)
        found.append(Candidate(point, schedule))

    def _schedule(self, point: Decisions) -> Any:
        schedule = self.space.schedule(point)
        code = tvm_ffi.structural_hash(schedule.mod)
        twin = self._seen.setdefault(code, point)
        if twin != point:
            raise ScheduleError(f"makes the same code as {self.space.values(twin)}")
        return schedule

    def _note_predictions(self, found: Sequence[Candidate]) -> None:
        """Keep what the model thinks of the candidates: compared with the clock, it says whether the model is any good."""
        if self.model == "random" or not found or not len(self._database):
            return
        candidates = [MeasureCandidate(c.payload, ArgInfo.from_prim_func(c.payload.mod["main"])) for c in found]
        scores = self._cost_model.predict(self._context, candidates)
        self._predicted.update((c.decisions, float(s)) for c, s in zip(found, scores, strict=True))

    def _compare_predictions(self, results: Sequence[tuple[Candidate, Outcome]]) -> None:
        pairs = [(self._predicted[c.decisions], -o.seconds) for c, o in results if o.ok and c.decisions in self._predicted]
        scores, speeds = {p for p, _ in pairs}, {s for _, s in pairs}
        if len(pairs) >= 4 and len(scores) > 1 and len(speeds) > 1:
            self._correlations.append(spearman(*zip(*pairs, strict=True)))

    def rank_correlation(self) -> float | None:
        """Spearman's correlation between predicted and measured speed within a batch, the mean over the batches.

        In -1..1; None before the model has predicted a batch.  Batches hold what the model thinks best, so that all of it
        is near equal and even a good model stays far from 1.
        """
        return sum(self._correlations) / len(self._correlations) if self._correlations else None
