"""The search loop keeps its promises: budgets, resuming after any death, failures remembered."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tune_synthetic as synthetic

from tilegen.errors import ArgumentError, RecordError, ScheduleError
from tilegen.tune.engine import Candidate, effort, explore
from tilegen.tune.journal import Journal, Outcome

PROGRAM = Path(synthetic.__file__)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal", [12, 12, 12]) as opened:
        yield opened


def test_the_number_of_trials_is_exact(journal: Journal, tmp_path: Path) -> None:
    why = explore(synthetic.RandomProposer(), synthetic.FakeEvaluator(tmp_path / "m", 0), journal, trials=37, batch=8)
    assert (why, len(journal.trials), [t.number for t in journal.trials]) == ("trials", 37, list(range(1, 38)))


def test_a_small_space_is_searched_whole_and_ends_calmly(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", [2, 3]) as journal:
        why = explore(synthetic.RandomProposer((2, 3)), synthetic.FakeEvaluator(tmp_path / "m", 0), journal, trials=100)
        assert (why, len(journal.known)) == ("exhausted", 6)


def test_the_time_budget_is_kept_within_five_percent(journal: Journal, tmp_path: Path) -> None:
    begin = time.monotonic()
    why = explore(
        synthetic.RandomProposer(), synthetic.FakeEvaluator(tmp_path / "m", 0.01), journal, trials=10**6, deadline=begin + 1
    )
    assert why == "time"
    assert 0.99 <= time.monotonic() - begin <= 1.05


class AllFail:
    def __init__(self, good: int = 0) -> None:
        self.left = good

    def evaluate(self, batch: Sequence[Candidate], deadline: float) -> Iterator[tuple[Candidate, Outcome]]:
        for candidate in batch:
            self.left -= 1
            ok = Outcome("ok", 1e-3)
            yield candidate, ok if self.left >= 0 else Outcome("build", message=f"LLVM says no to {candidate.decisions}")


def test_nothing_valid_stops_with_the_first_error_in_full(journal: Journal) -> None:
    with pytest.raises(ScheduleError, match=r"first 8 candidates.*\(build\):\nLLVM says no to \(") as caught:
        explore(synthetic.RandomProposer(), AllFail(), journal, trials=100, batch=8)
    assert str(journal.trials[0].decisions) in str(caught.value)
    assert len(journal.trials) == 8


def test_a_failing_batch_after_successes_stops_and_keeps_them(journal: Journal) -> None:
    assert explore(synthetic.RandomProposer(), AllFail(good=8), journal, trials=100, batch=8) == "failing"
    assert (len(journal.successes()), journal.failures()) == (8, {"build": 8})


def test_a_journal_of_another_space_is_set_aside(tmp_path: Path) -> None:
    for space in ([8], [9]):
        with Journal(tmp_path / "j", space) as journal:
            assert not journal.trials
            journal.add((0,), Outcome("ok", 1.0))
    assert (tmp_path / "j.old").exists()


def test_starting_over_sets_the_journal_aside(tmp_path: Path) -> None:
    for resume, count in ((True, 1), (True, 2), (False, 1)):
        with Journal(tmp_path / "j", [8], resume=resume) as journal:
            journal.add((0,), Outcome("ok", 1.0))
            assert len(journal.trials) == count


def test_a_second_tuner_on_the_same_kernel_is_told(journal: Journal) -> None:
    with pytest.raises(RecordError, match="in use: another tuner"):
        Journal(journal.path, [12, 12, 12])


def test_failures_and_rankings_are_remembered(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", [8]) as journal:
        journal.add((1,), Outcome("crash", message="signal 11"))
        journal.rank({"winner": [2]})
    with Journal(tmp_path / "j", [8]) as journal:
        assert journal.known[(1,)] == Outcome("crash", message="signal 11")
        assert journal.ranked == {"winner": [2]}
        journal.add((2,), Outcome("ok", 1.0, 0.1))
        assert journal.ranked is None


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_torn_last_line_costs_one_trial(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    with Journal(path, [8]) as journal:
        for i in range(3):
            journal.add((i,), Outcome("ok", 1.0))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, [8]) as journal:
        assert [t.decisions for t in journal.trials] == [(0,), (1,)]
        journal.add((2,), Outcome("ok", 1.0))
    with Journal(path, [8]) as journal:
        assert len(journal.trials) == 3


def test_killed_fifty_times_no_trial_is_lost_or_measured_twice(tmp_path: Path) -> None:
    journal_path, measured = tmp_path / "journal", tmp_path / "measured"
    # A life has thirty trials at most and then waits, so that fifty do not finish the search where a busy machine kills late.
    command = [sys.executable, str(PROGRAM), str(journal_path), str(measured)]
    rng, before, kills, lost = random.Random(1), 0, 0, 0
    while kills < 50:
        child = subprocess.Popen([*command, "1700", "5e-3", "30"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        child.stdout.readline()  # it runs: the interpreter's start is not what is tested
        time.sleep(rng.uniform(0.0, 0.03))
        child.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        child.communicate(timeout=30)
        kills += 1
        done = len(measured.read_text().splitlines()) if measured.exists() else 0
        with Journal(journal_path, [12, 12, 12]) as journal:
            now = len(journal.trials)
        assert now >= before, "a recorded trial was lost"
        lost, before = done - now, now
        assert lost <= kills, "a death costs at most the trial in flight"
    assert before < 1700, "the search must have been killed, not finished"
    wanted = before + 20
    done = subprocess.run([*command, str(wanted), "1e-3", "1700"], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split()[-1] == "trials"
    with Journal(journal_path, [12, 12, 12]) as journal:
        assert [t.number for t in journal.trials] == list(range(1, wanted + 1))
        assert len(journal.known) == wanted, "a candidate was measured twice"
    again = Counter(measured.read_text().splitlines())
    assert sum(again.values()) - wanted <= kills
    assert max(again.values()) <= 2, "only a trial in flight may be repeated"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("fast",), "effort is 'fast'"), (("quick", 0), "trials is 0"), (("quick", None, -1), "minutes is -1")],
)
def test_wrong_limits_are_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        effort(*arguments)
