"""A search from its first trial to its record, on a small kernel with real compilation."""

from __future__ import annotations

import dataclasses
import io
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tune_kernels as kernels
from rich.console import Console
from tune_kernels import task

from tilegen.errors import RecordError, ScheduleError
from tilegen.tune import logs, records, session
from tilegen.tune.engine import Effort
from tilegen.tune.journal import Journal, Outcome, Trial
from tilegen.tune.local import Limits, Workshop
from tilegen.tune.progress import Progress, Silent, duration
from tilegen.tune.report import TuneReport
from tilegen.tune.session import Standing, beats, confirmed, journal_path, judge, search
from tilegen.tune.space import Space, replay

QUICK = Effort(trials=8, minutes=1.0, batch=4)
LIMITS = Limits(measure=10.0, repeats=3, rounds=5)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop(kernels.HOST, limits=LIMITS) as shop:
        yield shop


def run(workshop: Workshop, log_dir: Path, effort: Effort = QUICK, **options: Any) -> Any:
    return search(task(), workshop, effort, log_dir=log_dir, progress=options.pop("progress", Silent()), **options)


def test_a_search_writes_a_record_that_lookup_finds_and_a_build_can_use(workshop: Workshop, tmp_path: Path) -> None:
    result = run(workshop, tmp_path, Effort(16, 1.0, 8))
    assert (result.trials, result.stopped) == (16, "trials")
    found = records.lookup(task().key, tmp_path)
    assert found is not None
    assert found.id == result.record
    assert found.source == "user"
    assert found.decisions == result.decisions
    assert 0 < found.seconds <= (found.default_seconds or 0) < 1
    schedule = replay(found.trace, kernels.module())
    assert [int(schedule.trace.decisions[i]) for i in list(schedule.trace.insts)[:3]] == [
        c.index(v) for c, v in zip(Space(task().mod, task().rule).categories, found.decisions, strict=True)
    ]


def test_the_same_call_again_measures_nothing_and_says_the_same(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(workshop, tmp_path)
    monkeypatch.delattr(session, "LocalEvaluator")
    again = run(workshop, tmp_path)
    assert (again.stopped, again.decisions, again.seconds) == ("known", first.decisions, first.seconds)
    assert TuneReport([first], 1.0).lines()[-1].endswith("8 trials in 1 s, 1 record(s) written")
    assert TuneReport([again], 1.0).lines()[-1].endswith("0 trials in 1 s, 0 record(s) written")
    assert len(records.read(records.log_path(tmp_path, task().key.host, task().key.op))) == 1


def test_what_is_used_gives_way_only_to_what_was_measured_beside_it(workshop: Workshop, tmp_path: Path) -> None:
    """A search that tried nothing but the default leaves the record of another point where it is."""
    run(workshop, tmp_path, Effort(1, 1.0, 4))
    found, space = records.lookup(task().key, tmp_path), Space(task().mod, task().rule)
    assert found is not None
    used = dataclasses.replace(found, decisions=space.values((2, 1, 2)), seconds=found.seconds / 2)
    logs.append(records.log_path(tmp_path, used.key.host, used.key.op), used)
    assert run(workshop, tmp_path, Effort(1, 1.0, 4), seed=1).record is None
    kept = records.lookup(task().key, tmp_path)
    assert kept is not None
    assert kept.decisions == used.decisions


def test_more_trials_go_on_at_the_exact_count(workshop: Workshop, tmp_path: Path) -> None:
    run(workshop, tmp_path)
    longer = run(workshop, tmp_path, Effort(12, 1.0, 4))
    assert longer.trials == 12
    path = journal_path(task(), tmp_path, 0)
    lines = path.read_text().splitlines()
    assert sum('"trial":' in line for line in lines) == 12
    assert sum('"ranked":' in line for line in lines) == 2


def test_a_small_space_ends_when_it_is_exhausted(workshop: Workshop, tmp_path: Path) -> None:
    result = run(workshop, tmp_path, Effort(1000, 1.0, 16))
    assert result.stopped == "exhausted"
    assert result.trials <= result.space == 27
    assert run(workshop, tmp_path, Effort(1000, 1.0, 16)).stopped == "known"


def test_time_that_is_up_before_the_first_trial_gives_no_result(workshop: Workshop, tmp_path: Path) -> None:
    assert run(workshop, tmp_path, deadline=time.monotonic() + 0.01) is None


def test_the_time_budget_of_a_search_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    begin = time.monotonic()
    result = run(workshop, tmp_path, Effort(1000, 1.0, 4), deadline=begin + 8)
    assert result.stopped in {"time", "exhausted"}
    assert time.monotonic() - begin < 8 * 1.05


def test_a_second_search_of_the_same_kernel_is_told(workshop: Workshop, tmp_path: Path) -> None:
    with Journal(journal_path(task(), tmp_path, 0), "anything"), pytest.raises(RecordError, match="another tuner"):
        run(workshop, tmp_path)


def test_a_kernel_without_valid_candidates_stops_with_the_first_error(workshop: Workshop, tmp_path: Path) -> None:
    broken = task(build="tune_calls:fail_to_build")
    with pytest.raises(ScheduleError, match=r"none of the first 4 candidates is valid(.|\n)*no compiler today"):
        search(broken, workshop, QUICK, log_dir=tmp_path, progress=Silent())
    assert records.lookup(broken.key, tmp_path) is None


def test_a_challenger_must_win_by_more_than_the_spread() -> None:
    champion = Standing((0,), [1.00, 1.10, 0.90, 1.05, 0.95, 1.00, 1.20, 0.80])
    noisy = Standing((1,), [0.99, 1.12, 0.88, 1.06, 0.97, 0.98, 1.15, 0.85])
    faster = Standing((2,), [s * 0.9 for s in champion.samples])
    assert not beats(noisy, champion)
    assert beats(faster, champion)
    assert not beats(Standing((3,), [0.1]), Standing((0,), [1.0])), "one round proves nothing"


@pytest.mark.parametrize(("incumbent", "winner"), [(None, (0, 0, 0)), ((1, 1, 1), (1, 1, 1))])
def test_what_is_used_now_stays_when_nothing_beats_it(incumbent: Any, winner: Any) -> None:
    space = Space(task().mod, task().rule)
    base = [1.0, 1.1, 0.9, 1.0]
    standings = [Standing((0, 0, 0), base), Standing((1, 1, 1), base), Standing((2, 2, 2), [1.05, 1.0, 0.95, 0.99])]
    assert judge(standings, space, incumbent)[0].decisions == winner


@pytest.mark.parametrize(("lasting", "winner"), [(True, (2, 2, 2)), (False, (0, 0, 0))])
def test_a_challenger_must_win_again_when_it_is_measured_with_what_is_used_alone(lasting: bool, winner: Any) -> None:
    space, asked = Space(task().mod, task().rule), []
    base, lucky = [1.0, 1.1, 0.9], [0.8, 0.9, 0.7]
    standings = [Standing((0, 0, 0), base), Standing((1, 1, 1), [1.2, 1.3, 1.1]), Standing((2, 2, 2), lucky)]

    def measure(points: Any, seconds: float) -> list[list[float]]:
        asked.append((list(points), seconds))
        return [[0.8] * 5 if lasting else [1.0] * 5, [1.0] * 5]

    found = confirmed(standings, measure, space, None, 2.0)
    assert asked == [([(2, 2, 2), (0, 0, 0)], 2.0)]
    assert judge(found, space, None)[0].decisions == winner


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it otherwise
sys.modules["torch"] = None  # importing it would take longer than the search
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tune_kernels as kernels
from tilegen.tune.engine import Effort
from tilegen.tune.local import Limits, Workshop
from tilegen.tune.progress import Silent
from tilegen.tune.session import search
class Life(Silent):
    def trial(self, trial):
        super().trial(trial)
        if self._new == int(sys.argv[4]):
            time.sleep(3600)  # until it is killed, however late that comes
with Workshop(kernels.HOST, limits=Limits(repeats=3, rounds=3), jobs=1) as shop:
    result = search(kernels.task(), shop, Effort(int(sys.argv[3]), 1.0, 4), log_dir=Path(sys.argv[2]), progress=Life())
print(result.stopped, result.trials)
"""


def test_killed_while_compiling_or_measuring_a_real_search_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    path, rng = journal_path(task(), tmp_path, 0), random.Random(0)
    before, wanted = 0, 1
    for signum in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL):
        child = subprocess.Popen([*command, "200", "3"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 120
        while _trials(path) < wanted and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        child.send_signal(signum)
        child.wait(30)
        now = _trials(path)
        assert now >= max(before, wanted), "a trial was lost"
        before, wanted = now, now + 1
    total = before + 4
    done = subprocess.run([*command, str(total), "200"], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["trials", str(total)]
    decisions = [line.split('"decisions":')[1].split("]")[0] for line in path.read_text().splitlines() if '"trial":' in line]
    assert len(decisions) == len(set(decisions)) == total, "a candidate was measured twice"


def _trials(path: Path) -> int:
    return path.read_bytes().count(b'"trial":') if path.exists() else 0


def plain_progress() -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(Console(file=text, force_terminal=False, width=200)), text


def test_progress_without_a_terminal_is_plain_lines(workshop: Workshop, tmp_path: Path) -> None:
    progress, text = plain_progress()
    with progress:
        result = run(workshop, tmp_path, progress=progress)
    first = text.getvalue().splitlines()[0]
    assert first.startswith("walk forward.walk0: trial 1/8, ")
    for part in ("trials/s", "best ", "GB/s (", "% of copying)"):
        assert part in first
    report = TuneReport([result], 12.0)
    assert "times as fast as the default" in report.lines()[0]
    assert "random search would have had" in report.lines()[2]
    assert "record " in report.lines()[3]
    assert str(tmp_path) in report.lines()[3]
    assert report.lines()[-1].startswith("1 kernel(s): ")
    assert report.to_json()["results"][0]["trials"] == 8


def test_progress_counts_rejected_candidates_calmly() -> None:
    progress, text = plain_progress()
    progress.begin("a kernel", 3, 10, 1000, 2e6, 1e9)
    progress.trial(Trial(4, (0,), Outcome("crash", message="signal 11\nlong story")))
    progress.trial(Trial(5, (1,), Outcome("ok", 1e-3, 1e-5)))
    assert "going on after trial 3" in text.getvalue()
    assert "signal 11" not in text.getvalue()
    assert "1 rejected" in progress.line()
    assert "best 1 ms, 2.0 GFLOP/s, 0.0 GB/s (0 % of copying)" in progress.line()


@pytest.mark.parametrize(("seconds", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 us")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_on_a_terminal_is_one_live_line_that_goes_away() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True, width=120)) as progress:
        progress.stage("planning")
        progress.begin("a kernel", 0, 10, 10**6, None, 1e9)
        progress.trial(Trial(1, (1,), Outcome("ok", 1e-3, 1e-5)))
        progress.say("a line that stays")
    shown = text.getvalue()
    assert "a line that stays" in shown
    assert "best 1 ms, 1.0 GB/s (100 % of copying)" in shown
    assert shown.rstrip().endswith(("\x1b[?25h", "\x1b[2K")), "the live line is erased and the cursor back"
