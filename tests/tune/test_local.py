"""Candidates are built and measured in processes of their own, and no wrong one passes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tune_calls
import tune_kernels as kernels
from tune_kernels import HOST, task

from tilegen.errors import BuildError, ScheduleError
from tilegen.tune.engine import Candidate
from tilegen.tune.local import GRACE, Backend, Limits, LocalEvaluator, Workshop
from tilegen.tune.space import Space

KINDS = list(tune_calls.BEHAVIOURS)


def behave(sch: Any) -> None:
    """One decision whose categories stand for the behaviours of `tune_calls.BEHAVIOURS`."""
    b, *_ = sch.get_loops(sch.get_sblock("upd"))
    sch.annotate(b, "pragma_auto_unroll_max_step", kernels.pick(sch, list(range(len(KINDS)))))


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop(HOST, limits=Limits(measure=2.0, repeats=3, rounds=5)) as shop:
        yield shop


@pytest.fixture(scope="module")
def bad(workshop: Workshop) -> LocalEvaluator:
    t = task(rule=behave, build="tune_calls:build_c")
    return LocalEvaluator(t, Space(t.mod, t.rule), workshop)


EXPECTED = [
    ("ok", "ok", ""),
    ("wrong", "wrong", r"Y: largest error 0\.01 at \[0, 0, 1\] \(limit"),
    ("outside", "outside", "wrote outside of Y"),
    ("input", "outside", "changed its input K"),
    ("unstable", "unstable", "Y: two runs differ"),
    ("unwritten", "wrong", "1 of 8192 elements are NaN or infinite"),
    ("ragged", "wrong", r"shape \[3, 13, 64\]"),
    ("crash", "crash", "signal 11"),
    ("hang", "timeout", r"killed after 2\.0 s"),
    ("build", "build", "error:"),
]


@pytest.mark.parametrize(("behaviour", "kind", "message"), EXPECTED, ids=[e[0] for e in EXPECTED])
def test_a_bad_candidate_is_rejected_and_the_next_one_measured(
    bad: LocalEvaluator, behaviour: str, kind: str, message: str
) -> None:
    import re

    batch = [Candidate((KINDS.index(behaviour),)), Candidate((0,))]
    outcomes = {c.decisions[0]: o for c, o in bad.evaluate(batch, time.monotonic() + 60)}
    assert outcomes[KINDS.index(behaviour)].kind == kind
    assert re.search(message, outcomes[KINDS.index(behaviour)].message)
    assert outcomes[0].ok
    assert 0 < outcomes[0].seconds < 0.1


def test_every_point_of_a_real_space_is_right_or_rejected(workshop: Workshop) -> None:
    t = task()
    space = Space(t.mod, t.rule)
    evaluator = LocalEvaluator(t, space, workshop)
    points = [(0, 0, 0), (2, 1, 2), (1, 2, 1), (0, 2, 0)]  # the last: vectors of 32 in tiles of 16
    outcomes = {c.decisions: o.kind for c, o in evaluator.evaluate([Candidate(p) for p in points], time.monotonic() + 60)}
    assert [outcomes[p] for p in points[:3]] == ["ok"] * 3
    assert outcomes[points[3]] in {"ok", "build", "wrong", "outside"}
    samples = evaluator.rank(points[:2], seconds=1.0)
    assert [len(s) for s in samples] == [5, 5]
    assert all(0 < s < 0.1 for row in samples for s in row)


def test_what_is_built_again_passes_the_gates_again(bad: LocalEvaluator) -> None:
    kinds = [(KINDS.index(kind),) for kind in ("ok", "wrong", "build")]
    for point in kinds:
        bad.libraries.pop(point, None)
    assert {point: outcome.kind for point, outcome in bad.rebuild(kinds)} == {kinds[1]: "wrong", kinds[2]: "build"}
    assert kinds[0] in bad.libraries
    assert not {kinds[1], kinds[2]} & bad.libraries.keys()


def test_the_deadline_cuts_measuring_short(bad: LocalEvaluator) -> None:
    begin = time.monotonic()
    done = list(bad.evaluate([Candidate((KINDS.index("hang"),)), Candidate((0,))], begin + 1.0))
    assert all(c.decisions == (0,) for c, _ in done), "what the deadline cut off has no outcome"
    assert time.monotonic() - begin < 1.0 + GRACE + 0.5


def test_a_device_that_builds_do_not_disturb_measures_meanwhile() -> None:
    with Workshop(HOST, backend=Backend(overlap=True), limits=Limits(measure=5.0, repeats=3)) as shop:
        t = task(rule=behave, build="tune_calls:build_c")
        evaluator = LocalEvaluator(t, Space(t.mod, t.rule), shop)
        batch = [Candidate((KINDS.index(kind),)) for kind in ("ok", "wrong", "build")]
        kinds = sorted(o.kind for _, o in evaluator.evaluate(batch, time.monotonic() + 60))
    assert kinds == ["build", "ok", "wrong"]


def test_a_reference_of_another_shape_is_named(workshop: Workshop) -> None:
    broken = task(reference=lambda inputs: {"Y": np.zeros(3)})
    space = Space(broken.mod, broken.rule)
    with pytest.raises(ScheduleError, match=r"the reference of walk forward\.walk0 gives Y the shape \[3\]"):
        LocalEvaluator(broken, space, workshop)


@pytest.mark.parametrize(("behaviour", "kind"), [("ok", "ok"), ("wrong", "wrong"), ("ragged", "wrong")])
def test_without_a_reference_the_unscheduled_kernel_is_it(workshop: Workshop, behaviour: str, kind: str) -> None:
    t = task(rule=behave, build="tune_calls:build_c", reference=None)
    evaluator = LocalEvaluator(t, Space(t.mod, t.rule), workshop)
    ((_, outcome),) = evaluator.evaluate([Candidate((KINDS.index(behaviour),))], time.monotonic() + 60)
    assert outcome.kind == kind


def test_a_kernel_that_fails_unscheduled_is_an_error(workshop: Workshop) -> None:
    with pytest.raises(BuildError, match="outputs failed in a measuring process"):
        workshop.call(workshop.backend.outputs, library="/nowhere.so", symbol="main", case="/nowhere", into="/")


def test_the_copy_bandwidth_is_plausible(workshop: Workshop) -> None:
    assert 1e8 < workshop.bandwidth() < 1e13


def test_sizes_without_symbols_need_no_ragged_case(workshop: Workshop) -> None:
    t = dataclasses.replace(task(), symbolic=None)
    evaluator = LocalEvaluator(t, Space(t.mod, t.rule), workshop)
    assert list(evaluator.cases) == ["tuned"]
    ((_, outcome),) = evaluator.evaluate([Candidate((0, 0, 0))], time.monotonic() + 60)
    assert outcome.ok
