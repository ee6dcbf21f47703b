"""Worker processes stay warm, die alone, and never fail in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilegen.errors import BuildError
from tilegen.tune.pool import Job, Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    workers = Pool(2)
    yield workers
    workers.close()


def call(function: str, timeout: float = 20.0, tag: object = None, **arguments: object) -> Job:
    return Job(f"tune_calls:{function}", arguments, timeout, tag)


def test_replies_carry_values_and_full_errors(pool: Pool) -> None:
    replies = {r.job.tag: r for r in pool.run([call("echo", tag=1, value=[1, "x"]), call("fail", tag=2, text="why")])}
    assert (replies[1].kind, replies[1].value) == ("ok", [1, "x"])
    assert replies[2].kind == "error"
    assert "ValueError: why" in replies[2].message
    assert "Traceback" in replies[2].message


def test_workers_stay_warm(pool: Pool) -> None:
    pids = {r.value for _ in range(3) for r in pool.run([call("pid") for _ in range(4)])}
    assert len(pids) <= 2


def test_a_crash_kills_only_its_own_job(pool: Pool) -> None:
    jobs = [call("crash", tag="crash"), *(call("echo", tag=i, value=i) for i in range(6))]
    kinds = {r.job.tag: r.kind for r in pool.run(jobs)}
    assert kinds == {"crash": "crash", **dict.fromkeys(range(6), "ok")}


def test_a_hang_is_killed_on_time(pool: Pool) -> None:
    list(pool.run([call("pid"), call("pid")]))
    begin = time.monotonic()
    (reply,) = pool.run([call("hang", timeout=0.3)])
    assert (reply.kind, reply.message) == ("timeout", "killed after 0.3 s")
    assert time.monotonic() - begin < 1.5


def test_the_deadline_drops_what_is_in_flight(pool: Pool) -> None:
    list(pool.run([call("pid"), call("pid")]))
    begin = time.monotonic()
    assert not list(pool.run([call("hang") for _ in range(4)], deadline=begin + 0.3))
    assert time.monotonic() - begin < 1.0
    assert [r.kind for r in pool.run([call("pid")])] == ["ok"]


def test_starting_time_does_not_count_against_a_job() -> None:
    workers = Pool(1, setup=["tune_calls:slow_start"])
    (reply,) = workers.run([call("echo", timeout=0.5, value=1)])
    workers.close()
    assert reply.kind == "ok"


def test_a_worker_that_cannot_start_says_why() -> None:
    workers = Pool(1, setup=["tune_calls:broken_start"])
    with pytest.raises(BuildError, match=r"exit status 1 while starting(.|\n)*RuntimeError: no such library"):
        list(workers.run([call("pid")]))
    workers.close()


def test_workers_are_replaced_after_some_calls() -> None:
    workers = Pool(1, recycle=2)
    pids = [r.value for r in workers.run([call("pid") for _ in range(5)])]
    workers.close()
    assert len(set(pids)) == 3


def test_prints_of_a_candidate_do_not_disturb(pool: Pool) -> None:
    assert [r.value for r in pool.run([call("noisy", value=7)])] == [7]


def test_workers_die_with_their_owner() -> None:
    code = (
        "from tilegen.tune.pool import Pool, Job\np = Pool(1)\n"
        "print(*[r.value for r in p.run([Job('tune_calls:pid', {}, 20)])], flush=True)\n"
        "list(p.run([Job('tune_calls:hang', {}, 60)]))"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    os.kill(worker, 0)
    owner.kill()
    owner.wait()
    for _ in range(100):
        if not _alive(worker):
            return
        time.sleep(0.02)
    pytest.fail("the worker outlived its owner")


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
