"""Measuring through TVM's tracker and server, on loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tune_calls
import tune_kernels as kernels
from tune_kernels import HOST, task

from tilegen.errors import ArgumentError
from tilegen.tune import records, remote
from tilegen.tune.engine import Candidate, Effort
from tilegen.tune.local import Limits, LocalEvaluator, Workshop
from tilegen.tune.progress import Silent
from tilegen.tune.session import search
from tilegen.tune.space import Space

pytest.importorskip("tornado", reason="TVM's tracker needs tornado: pip install tornado")

SERVE = """
import sys, time
sys.modules["torch"] = None
from tilegen import _tvm
_tvm.ensure()
from tvm.rpc.server import Server
from tvm.rpc.tracker import Tracker
if __name__ == "__main__":
    tracker = Tracker(host="127.0.0.1", port=9290, port_end=9890, silent=True)
    place = {"host": "127.0.0.1", "key": "cpu", "tracker_addr": ("127.0.0.1", tracker.port), "port": 9900, "port_end": 9990}
    servers = [Server(**place, silent=True) for _ in range(2)]
    print(tracker.port, flush=True)
    sys.stdin.read()
    for server in servers:
        server.terminate()
    tracker.terminate()
"""


LIMITS = Limits(measure=30.0, repeats=3, rounds=3)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    program = tmp_path_factory.mktemp("rpc") / "serve.py"  # a file: the tracker starts its process from it again
    program.write_text(SERVE)
    child = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    place = remote.environment(f"127.0.0.1:{port}", "cpu")
    with Workshop(HOST, backend=remote.backend(), limits=LIMITS, places={"board": place}, jobs=1) as shop:
        yield shop
    child.communicate(timeout=30)


def test_a_search_measures_on_the_server_and_records(workshop: Workshop, tmp_path: Path) -> None:
    result = search(task(), workshop, Effort(4, 2.0, 4), log_dir=tmp_path, progress=Silent())
    assert result is not None
    assert (result.trials, result.rejected) == (4, {})
    assert records.lookup(task().key, tmp_path) is not None


def test_two_searches_at_once_have_a_server_each(workshop: Workshop, tmp_path: Path) -> None:
    """The first keeps its server until its measuring process ends: with one server the second would wait for ever."""
    assert workshop.bandwidth() > 0
    place = workshop.meter.environment
    with Workshop(HOST, backend=remote.backend(), limits=LIMITS, places={"board": place}, jobs=1) as other:
        result = search(task(), other, Effort(2, 2.0, 2), log_dir=tmp_path, progress=Silent())
        assert result is not None and result.trials == 2
        assert workshop.call(workshop.backend.copy_bandwidth) > 0


@pytest.mark.parametrize(("behaviour", "kind"), [("wrong", "wrong"), ("outside", "outside")])
def test_the_gates_hold_on_a_server_too(workshop: Workshop, behaviour: str, kind: str) -> None:
    def rule(sch: object) -> None:
        b, *_ = sch.get_loops(sch.get_sblock("upd"))  # type: ignore[attr-defined]
        choice = kernels.pick(sch, list(range(len(tune_calls.BEHAVIOURS))))
        sch.annotate(b, "pragma_auto_unroll_max_step", choice)  # type: ignore[attr-defined]

    bad = task(rule=rule, build="tune_calls:build_c")
    evaluator = LocalEvaluator(bad, Space(bad.mod, bad.rule), workshop)
    batch = [Candidate((list(tune_calls.BEHAVIOURS).index(behaviour),)), Candidate((0,))]
    kinds = {c.decisions[0]: o.kind for c, o in evaluator.evaluate(batch, time.monotonic() + 90)}
    assert kinds == {batch[0].decisions[0]: kind, 0: "ok"}


@pytest.mark.parametrize(
    ("address", "key", "named"), [("9190", "cpu", "rpc is '9190'"), ("host:x", "cpu", "rpc is"), ("h:1", "", "key is empty")]
)
def test_a_wrong_address_is_named(address: str, key: str, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        remote.environment(address, key)
