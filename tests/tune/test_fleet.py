"""The search of all kernels of a call on a device that is not the CPU: budgets, failures, resuming, records."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tune_device_calls as calls
from tune_device import NAMES

from tilegen.build.target import resolve
from tilegen.errors import BuildError, ScheduleError
from tilegen.mechanisms import Instance, get
from tilegen.tune import engine, records
from tilegen.tune.device import driver, winner
from tilegen.tune.device.operators import Operator, Request
from tilegen.tune.device.search import Fleet
from tilegen.tune.journal import FREE, Journal
from tilegen.tune.local import Backend, Workshop
from tilegen.tune.progress import Silent
from tilegen.tune.report import SearchResult, TuneReport
from tilegen.tune.session import journal_at

PARTS = ("describe", "setup", "measure", "rank", "copy_bandwidth", "build", "prepare", "check")
SYNTHETIC = Backend(
    **{part: f"tune_device_calls:{part}" for part in PARTS}, build_setup="tune_device_calls:setup", build_torch=True, overlap=True
)  # type: ignore[arg-type]
BEST = [16, 2, 8, 16, 2]


def request() -> Request:
    found = get("elementwise_attention")
    return Request(Instance(found, found.config(order=2), {"C": 32}, "float32"), {"B": 2, "T": 48})


class Heard(Silent):
    """Keeps the lines that a user would read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def hunt(
    folder: Path, *, trials: int = 40, minutes: float = 1.0, resume: bool = True, patience: int = 10**6, devices: int = 1
) -> tuple[list[SearchResult], Fleet]:
    """Search the kernels of an operator; trials, records and measurements go to `folder`."""
    os.environ["MEASURED"] = str(folder)
    begun, places = time.monotonic(), {f"GPU {i}": {driver.ORDINAL: str(i)} for i in range(devices)}
    with Workshop(resolve("sm_90").tvm, backend=SYNTHETIC, jobs=2, places=places) as workshop:
        limits = dataclasses.replace(engine.effort("default", trials, minutes), patience=patience)
        parts: dict[str, Any] = {"deadline": begun + 60 * minutes, "log_dir": folder, "resume": resume, "seed": 0}
        fleet = Fleet(workshop, limits, progress=Heard(), **parts)
        return fleet.search([request()], resolve("sm_90")), fleet


def undriven(patch: pytest.MonkeyPatch) -> None:
    """A machine whose driver is not asked."""
    patch.setattr(winner, "device_text", lambda target: {"name": target.device, "arch": "sm_90"})
    patch.setattr(winner, "compiler_release", lambda: "13.0")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    undriven(monkeypatch)
    monkeypatch.setenv("DESCRIBED", str(tmp_path_factory.getbasetemp() / "described.json"))


def measured(folder: Path) -> Counter[str]:
    return Counter((folder / "list").read_text().split())


def test_every_kernel_is_searched_and_the_best_recorded(tmp_path: Path) -> None:
    results, fleet = hunt(tmp_path, trials=60)
    assert not fleet.skipped
    assert len(results) == len(fleet.staged[0].hunts) >= 2
    for result in results:
        assert result.trials == 60
        assert result.decisions == BEST
        assert result.default_seconds == pytest.approx(calls.seconds([32, 1, 8, 8, 1]), rel=0.01)
        assert result.random_seconds and result.random_seconds > result.seconds
    kept = fleet.staged[0].hunts["forward", 0].kernel.key
    found = records.lookup(kept, tmp_path)
    assert found is not None
    assert (found.decisions, found.trace) == (BEST, [list(pair) for pair in zip(NAMES, BEST, strict=True)])
    assert found.key.arch == "sm_90"


def test_a_bad_candidate_costs_one_trial_and_what_cannot_be_built_none(tmp_path: Path) -> None:
    results, fleet = hunt(tmp_path, trials=30)
    for one in fleet.staged[0].hunts.values():
        kinds = {point: outcome.kind for point, outcome in one.journal.known.items()}
        assert {kind for p, kind in kinds.items() if p[2] == calls.CRASHES} <= {"crash"}
        assert {kind for p, kind in kinds.items() if p[2] == calls.WRONG} <= {"wrong"}
        assert {kind for p, kind in kinds.items() if p[2] == calls.UNFIT} <= {"schedule", "pruned"}
        assert not any(t.outcome.kind in FREE for t in one.journal.trials)
        pruned = sum(kind == "pruned" for kind in kinds.values())
        assert fleet.found[one].pruned == pruned > 0
        assert f"{pruned} pruned unbuilt" in fleet.found[one].lines()[1]
    assert all(set(result.rejected) <= {"crash", "wrong"} and result.rejected for result in results)
    assert "largest error 7" in results[0].reasons["wrong"]


def test_a_kernel_that_another_call_searches_is_left_to_it(tmp_path: Path) -> None:
    operator = Operator(request().instance, resolve("sm_90"), request().given)
    taken, *others = [kernel for place in operator.places if (kernel := operator.kernel(*place))]
    with Journal(journal_at(taken.key, tmp_path, 0), "another GPU's"):
        results, fleet = hunt(tmp_path, trials=4)
    assert [r.name for r in results] == [other.name for other in others]
    assert [(name, "in use" in why) for name, why in fleet.skipped] == [(taken.name, True)]


def test_equal_code_is_measured_once(tmp_path: Path) -> None:
    _, fleet = hunt(tmp_path, trials=30)
    assert set(measured(tmp_path).values()) == {1}
    known = fleet.staged[0].hunts["forward", 0].journal.known
    assert any(outcome.kind == "same" for outcome in known.values())


def test_the_same_call_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    first, _ = hunt(tmp_path, trials=12)
    then, fleet = hunt(tmp_path, trials=24)
    assert [r.trials for r in first] == [12] * len(first)
    assert [r.trials for r in then] == [24] * len(then)
    assert max(measured(tmp_path).values()) == 1
    assert sum(measured(tmp_path).values()) == 24 * len(then)
    again, _ = hunt(tmp_path, trials=24)
    assert {r.stopped for r in again} == {"known"}
    assert sum(measured(tmp_path).values()) == 24 * len(then)
    assert fleet.trials == 12 * len(then)


def test_the_time_is_kept(tmp_path: Path) -> None:
    begun = time.monotonic()
    results, _ = hunt(tmp_path, trials=10**6, minutes=0.08)
    assert time.monotonic() - begun < 4.8 * 1.05 + 0.5  # ending processes
    assert results and all(result.stopped == "time" for result in results)


def test_a_search_without_improvements_ends(tmp_path: Path) -> None:
    results, _ = hunt(tmp_path, trials=10**6, patience=12)
    assert {result.stopped for result in results} == {"settled"}
    for result in results:
        assert all(seconds is None or seconds > 0.99 * min(result.best_so_far[:-12]) for seconds in result.history[-12:])


def test_a_second_call_without_time_keeps_what_the_first_found(tmp_path: Path) -> None:
    first, _ = hunt(tmp_path, trials=40)
    before = {path: path.read_text() for path in tmp_path.glob("*/*.jsonl")}
    then, _ = hunt(tmp_path, trials=10**6, minutes=0.06)
    for old, new in zip(first, then, strict=False):
        assert new.seconds <= 1.01 * old.seconds
    for path, text in before.items():
        kept = records.split_lines(path.read_text())[0]
        for record in records.split_lines(text)[0]:
            assert records.best(kept, record.key.task).seconds <= 1.01 * record.seconds  # type: ignore[union-attr]


def test_what_a_reference_refuses_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of the measured is wrong at small sizes, which is found out before the ranking: the next best wins."""
    monkeypatch.setenv("REFUSED", "-".join(map(str, BEST)))
    results, fleet = hunt(tmp_path, trials=60)
    assert all(result.decisions != BEST for result in results)
    assert all(h.journal.known[tuple(BEST)].kind == "wrong" for h in fleet.staged[0].hunts.values())
    again, _ = hunt(tmp_path, trials=60)
    assert [r.decisions for r in again] == [r.decisions for r in results]


def test_without_a_valid_candidate_the_first_error_is_shown_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_WRONG", "1")
    with pytest.raises(ScheduleError, match=r"none of the first \d+ candidates is valid(?s:.*)y: largest error 7 at \[0, 0, 1\]"):
        hunt(tmp_path)


def test_several_devices_share_one_search(tmp_path: Path) -> None:
    """One journal, one limit of trials; a candidate that crashes on a sound device is to blame, and its device goes on."""
    results, fleet = hunt(tmp_path, trials=60, devices=3)
    assert [result.decisions for result in results] == [BEST] * len(results)
    assert [result.trials for result in results] == [60] * len(results)
    trials = fleet.meters.trials()
    assert list(trials) == ["GPU 0", "GPU 1", "GPU 2"]
    assert min(trials.values()) > 0
    assert sum(trials.values()) == fleet.trials == sum(measured(tmp_path).values()) == 60 * len(results)
    assert max(measured(tmp_path).values()) == 1
    assert all(result.rejected.get("crash") for result in results)
    assert len(fleet.meters.live) == 3
    report = TuneReport(results, 1.0, devices=trials)
    assert f"measured: {trials['GPU 0']} on GPU 0, " in "\n".join(report.lines())
    assert report.to_json()["devices"] == trials


BREAKS = {
    "start": "GPU 1 is left out: RuntimeError: CUDA_ERROR_SYSTEM_NOT_READY; the search goes on with GPU 0",
    "pace": "GPU 1 is left out: it copies 60% of what the fastest does; is it in use?; the search goes on with GPU 0",
    "measure": "GPU 1 is left out: RuntimeError: cuMemAlloc_v2: out of memory (2); the search goes on with GPU 0",
    "later": "GPU 1 is left out: RuntimeError: cuMemAlloc_v2: out of memory (2); the search goes on with GPU 0",
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_device_is_left_out_and_no_candidate_pays_for_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", f"{what} 1")
    results, fleet = hunt(tmp_path, trials=30, devices=2)
    assert [line for line in fleet.progress.lines if "left out" in line] == [BREAKS[what]]  # type: ignore[attr-defined]
    assert [result.trials for result in results] == [30] * len(results)
    assert fleet.meters.trials()["GPU 1"] == 0 or what == "later"
    for one in fleet.staged[0].hunts.values():
        crashed = [point for point, outcome in one.journal.known.items() if outcome.kind == "crash"]
        assert all(point[2] == calls.CRASHES for point in crashed)


def test_a_search_whose_only_device_is_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "start 0")
    with pytest.raises(BuildError, match=r"GPU 0 cannot be measured on: (.|\n)*CUDA_ERROR_SYSTEM_NOT_READY"):
        hunt(tmp_path)


PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it would take longer than the search
from pathlib import Path
import pytest
sys.path.insert(0, sys.argv[1])
import test_fleet
with pytest.MonkeyPatch.context() as patch:
    test_fleet.undriven(patch)
    test_fleet.hunt(Path(sys.argv[2]), trials=40)
"""


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed after a few dozen measurements, three times; at most what was in flight is measured again."""
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    for kill in range(3):
        wanted = 15 * (kill + 1)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        limit = time.monotonic() + 90
        while time.monotonic() < limit and process.poll() is None:
            if (tmp_path / "list").exists() and sum(measured(tmp_path).values()) >= wanted:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    results, _ = hunt(tmp_path, trials=40)
    assert [r.trials for r in results] == [40] * len(results)
    assert sum(measured(tmp_path).values()) <= 40 * len(results) + 3
