"""MetaSchedule's search, driven by us: finds good points with fewer trials than chance, repeats nothing, ends calmly."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
import tune_kernels as kernels

from tilegen.errors import ScheduleError
from tilegen.tune.evolve import evolve, step
from tilegen.tune.journal import Outcome, Trial
from tilegen.tune.search import MetaScheduleProposer, spearman
from tilegen.tune.space import Space, decisions_of, mutate, replay, trace_json

# isort: split
import tvm_ffi
from tvm.target import Target

TARGET = Target({"kind": "llvm", "num-cores": 2})


@pytest.fixture(scope="module")
def small() -> Space:
    return Space(kernels.module(4, 64), kernels.rule)


@pytest.fixture(scope="module")
def wide() -> Space:
    return Space(kernels.module(32, 64), kernels.wide_rule)


def cost(values: list[int]) -> float:
    """Seconds as a smooth function of the tiles, with one optimum: channel 16, time 8, unroll 64, batch 4."""
    target = (16, 8, 64, 4)
    return 1e-3 * (1 + 0.2 * sum(abs(math.log2(max(v, 1)) - math.log2(t)) for v, t in zip(values, target, strict=True)))


def trials_until_optimum(space: Space, seed: int, model: str, most: int = 200) -> int:
    search, count, best = MetaScheduleProposer(space, TARGET, seed=seed, model=model, batch=12), 0, cost([16, 8, 64, 4])
    while count < most:
        batch = search.propose(12) if model == "xgb" else []
        results = [(c, Outcome("ok", cost(space.values(c.decisions)))) for c in batch]
        for _, outcome in results:
            count += 1
            if outcome.seconds <= best * 1.0001:
                return count
        search.learn(results)
    return most


def random_until_optimum(space: Space, seed: int) -> int:
    points = list(space.points(random.Random(seed), set()))
    return next(i for i, p in enumerate(points, 1) if cost(space.values(p)) <= cost([16, 8, 64, 4]) * 1.0001)


def test_the_model_finds_the_optimum_with_fewer_trials_than_random_search(wide: Space) -> None:
    learned = [trials_until_optimum(wide, seed, "xgb") for seed in range(5)]
    chance = [random_until_optimum(wide, seed) for seed in range(101)]
    assert statistics.median(learned) < 0.25 * statistics.median(chance), (learned, statistics.median(chance))


def test_the_default_comes_first_then_the_seeds(small: Space) -> None:
    search = MetaScheduleProposer(small, TARGET, seeds=[(2, 1, 1)])
    assert [c.decisions for c in search.propose(2)] == [small.default, (2, 1, 1)]


def drain(search: MetaScheduleProposer, space: Space) -> list[Any]:
    found = []
    while batch := search.propose(5):
        search.learn([(c, Outcome("ok", 1e-3 * (1 + sum(c.decisions)))) for c in batch])
        found += batch
        assert len(found) <= space.total
    return found


def test_a_small_space_is_exhausted_without_repeats(small: Space) -> None:
    search = MetaScheduleProposer(small, TARGET)
    found = drain(search, small)
    assert len({c.decisions for c in found}) == len(found)
    assert len(found) + len(search.invalid) == small.total
    assert len({tvm_ffi.structural_hash(c.payload.mod) for c in found}) == len(found), "the same code was proposed twice"


def test_a_resumed_search_proposes_only_what_is_left(small: Space) -> None:
    first = MetaScheduleProposer(small, TARGET)
    done = first.propose(7)
    trials = [Trial(i, c.decisions, Outcome("ok", 1e-3) if i % 3 else Outcome("crash")) for i, c in enumerate(done)]
    again = MetaScheduleProposer(small, TARGET)
    again.restore(trials)
    rest = drain(again, small)
    assert not {c.decisions for c in rest} & {c.decisions for c in done}
    assert len(rest) + len(done) + len(again.invalid) == small.total


def test_equal_seeds_make_equal_searches(wide: Space) -> None:
    searches = []
    for seed in (3, 3, 4):
        search, found = MetaScheduleProposer(wide, TARGET, seed=seed), []
        for _ in range(3):
            batch = search.propose(8)
            search.learn([(c, Outcome("ok", cost(wide.values(c.decisions)))) for c in batch])
            found += [c.decisions for c in batch]
        searches.append(found)
    assert searches[0] == searches[1] != searches[2]


def test_the_rank_correlation_of_a_model_that_learns_is_positive(wide: Space) -> None:
    search = MetaScheduleProposer(wide, TARGET, batch=12)
    assert search.rank_correlation() is None
    for _ in range(5):
        search.learn([(c, Outcome("ok", cost(wide.values(c.decisions)))) for c in search.propose(12)])
    correlation = search.rank_correlation()
    assert correlation is not None
    assert correlation > 0.3


def test_a_trace_replays_on_symbolic_sizes(small: Space) -> None:
    point = (2, 1, 1)
    schedule = replay(trace_json(small.schedule(point)), kernels.module())
    assert decisions_of(schedule.trace) == point
    assert tvm_ffi.structural_equal(schedule.mod, small.schedule(point, kernels.module()).mod)
    assert small.values(point) == [64, 8, 4]
    assert small.indices([64, 8, 4]) == point
    assert small.indices([64, 8, 5]) is None


def test_a_trace_of_another_kernel_is_an_error_that_says_so(small: Space) -> None:
    trace = trace_json(small.schedule(small.default))
    trace = [[[*i[:2], ["gone", "main"], *i[3:]] if i[0] == "GetSBlock" else i for i in trace[0]], trace[1]]
    with pytest.raises(ScheduleError, match="the trace does not fit the kernel"):
        replay(trace, kernels.module())


def looks(sch: Any) -> None:
    """A rule that looks at what it sampled: its traces cannot be replayed with other decisions."""
    tile = kernels.pick(sch, [8, 16, 32])
    _, c, _ = sch.get_loops(sch.get_sblock("upd"))
    sch.split(c, [None, int(sch.get(tile)) * 2])


def test_a_rule_may_look_at_what_it_sampled() -> None:
    space = Space(kernels.module(4, 64), looks)
    extents = []
    for point in ((0,), (1,), (2,)):
        sch = space.schedule(point)
        extents.append(int(sch.get(sch.get_loops(sch.get_sblock("upd"))[2]).extent))
    assert extents == [16, 32, 64]
    found = drain(MetaScheduleProposer(space, TARGET), space)
    assert len(found) == 3


def unsteady(sch: Any) -> None:
    """Four decisions of six.  A tile of one leaves the copy of K a loop less, so that a trace fits some tiles only."""
    tile, *others = (kernels.pick(sch, [1, 2, 4, 8, 16, 32]) for _ in range(4))
    block = sch.get_sblock("upd")
    b, c, t = sch.get_loops(block)
    outer, inner = sch.split(c, [None, tile])
    sch.reorder(b, outer, t, inner)
    copy = sch.cache_read(block, 0, "global")
    sch.compute_at(copy, t)
    last = sch.get_loops(copy)[-1]
    for number, value in enumerate(others):
        sch.annotate(last, f"test_{number}", value)


def test_a_rule_whose_traces_do_not_replay_is_searched_all_the_same() -> None:
    space, target = Space(kernels.module(32, 64), unsteady), (3, 2, 4, 1)
    search, count = MetaScheduleProposer(space, TARGET, batch=12, seed=1), 0
    while count < 240:
        batch = search.propose(12)
        count += len(batch)
        if any(c.decisions == target for c in batch):
            break
        far = [sum(abs(a - b) for a, b in zip(c.decisions, target, strict=True)) for c in batch]
        search.learn([(c, Outcome("ok", 1e-3 * (1 + f))) for c, f in zip(batch, far, strict=True)])
    assert not search._replays, "the rule was meant to break MetaSchedule's own evolution"
    assert count < 240, f"chance needs {space.total // 2}"


def test_evolution_of_decisions_climbs_a_known_score() -> None:
    target, sizes = (3, 1, 4, 1, 5, 2, 6, 5), (8,) * 8
    score = lambda points: [-sum(abs(a - b) for a, b in zip(p, target, strict=True)) for p in points]
    measured = {(0,) * 8: 1.0}
    for _ in range(20):
        batch = evolve(sizes, measured, measured, score, random.Random(len(measured)), 8)
        assert batch
        assert not set(batch) & set(measured)
        measured |= {p: float(-s) for p, s in zip(batch, score(batch), strict=True)}
    assert target in measured
    assert evolve((1, 1), {}, (), score, random.Random(0), 4) == [], "nothing to decide"


def wavers(sch: Any) -> None:
    if int(sch.get(kernels.pick(sch, [1, 2]))) == 2:
        kernels.pick(sch, [1, 2])


def test_a_rule_that_samples_now_this_now_that_is_named() -> None:
    space = Space(kernels.module(4, 64), wavers)
    with pytest.raises(ScheduleError, match="must sample the same categories whatever it drew before"):
        space.schedule((1,))


def tiles(sch: Any) -> None:
    _, c, _ = sch.get_loops(sch.get_sblock("upd"))
    sch.split(c, sch.sample_perfect_tile(c, n=2))


def fails(sch: Any) -> None:
    sch.get_sblock("no such block")


@pytest.mark.parametrize(("rule", "message"), [(tiles, "SamplePerfectTile"), (fails, "failed for all of")])
def test_a_rule_that_cannot_be_searched_is_refused(rule: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Space(kernels.module(4, 64), rule)


def test_mutation_changes_exactly_one_decision(small: Space) -> None:
    trace, seen = small.schedule((1, 1, 1)).trace, set()
    for seed in range(60):
        changed = decisions_of(mutate(trace, seed))
        assert sum(a != b for a, b in zip(changed, (1, 1, 1), strict=True)) == 1
        seen.add(changed)
    assert len(seen) == 6, "every other category of every decision is reachable"


def test_a_step_never_stays() -> None:
    rng = random.Random(0)
    assert all(step(rng, at, 4) != at and 0 <= step(rng, at, 4) < 4 for at in range(4) for _ in range(50))


def test_spearman_is_the_correlation_of_ranks() -> None:
    from scipy.stats import spearmanr

    rng = random.Random(1)
    a, b = [rng.randrange(6) for _ in range(30)], [rng.random() for _ in range(30)]
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
