"""``tune()`` on a real operator: planned kernels, records, and a build that uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tilegen import build, mechanisms
from tilegen.build import gpus
from tilegen.bundle import gpu, machine
from tilegen.errors import ArgumentError, TargetError
from tilegen.mechanisms import Instance
from tilegen.tune import TuneReport, logs, tune
from tilegen.tune.progress import Silent
from tilegen.tune.run import devices_of, own_target

SHAPES = {"B": 2, "T": 48}


def instance() -> Instance:
    found = mechanisms.get("elementwise_attention")
    return Instance(found, found.config(order=2), {"C": 32}, "float32")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TuneReport]]:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILEGEN_LOG_DIR", str(folder))
        yield folder, tune([instance()], shapes=SHAPES, trials=4, progress=Silent())


def test_every_kernel_with_decisions_gets_a_record(tuned: tuple[Path, TuneReport]) -> None:
    folder, report = tuned
    assert not report.skipped
    names = [result.name for result in report.results]
    assert names[0] == "elementwise_attention forward.walk0"
    assert any(" backward." in name for name in names)
    assert all(result.trials == min(4, result.space) and not result.rejected for result in report.results)
    (verdict,) = logs.verify(folder)
    assert (verdict.records, verdict.bad) == (len(names), [])
    assert "times as fast" in report.lines()[-1]


def test_the_next_build_uses_the_records(tuned: tuple[Path, TuneReport], tmp_path: Path) -> None:
    _, report = tuned
    build.compile(instance(), tmp_path, functions=("forward", "backward"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    used = {f"{p['function']}.{p['kernel']}": p for p in manifest["provenance"]}
    for result in report.results:
        found = used[result.name.split()[1]]
        assert found["source"] == "user"
        assert list(found["decisions"].values()) == result.decisions


def test_an_operator_that_cannot_be_planned_does_not_stop_the_others(tuned: tuple[Path, TuneReport]) -> None:
    broken = mechanisms.get("elementwise_attention")
    odd = Instance(broken, broken.config(order=2), {}, "float32")  # C is missing
    report = tune([odd, instance()], shapes=SHAPES, trials=4, progress=Silent())
    assert [name for name, _ in report.skipped] == ["elementwise_attention"]
    assert {result.stopped for result in report.results} == {"known"}


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ops": []}, ArgumentError, "ops is empty"),
    ({"ops": ["no_such_op"]}, ArgumentError, "no_such_op"),
    ({"effort": "fast"}, ArgumentError, "effort is 'fast'"),
    ({"minutes": 0}, ArgumentError, "minutes is 0"),
    ({"shapes": {"Q": 4}}, ArgumentError, "shapes has Q=4"),
    ({"shapes": {"T": 0}}, ArgumentError, "shapes has T=0"),
    ({"rpc": "nowhere"}, ArgumentError, "rpc is 'nowhere'"),
    ({"rpc": "127.0.0.1:9190", "key": "board", "target": "sm_90"}, ArgumentError, "servers measure kernels for CPUs only"),
    ({"functions": ["step"], "target": "cpu"}, ArgumentError, "functions has step"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"ops": ["elementwise_attention"], "progress": Silent(), **change}
    with pytest.raises(error, match=message):
        tune(given.pop("ops"), **given)


H100, T4 = gpus.NAMED["sm_90"], gpus.NAMED["sm_75"]


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs of one model and another one."""
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver((13, 0), (0, 1, 2, 3), (90, 90, 75, 90)))
    monkeypatch.setattr(gpus, "of_device", lambda index=0: T4 if index == 2 else H100)


@pytest.mark.parametrize(
    ("target", "given", "numbers"),
    [
        (None, None, [0]),
        ("cuda:2", None, [2]),
        ("cpu", None, [0]),
        ("cuda", "0,1,3", [0, 1, 3]),
        (None, " 3, 1", [3, 1]),
        ("cuda", [1], [1]),
    ],
)
def test_devices_are_numbers_of_gpus(four_cards: None, target: str | None, given: Any, numbers: list[int]) -> None:
    assert devices_of(target, given) == numbers


DEVICES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"devices": "all"}, TargetError, r"GPU 0 is sm_90 \(sm_90, 132 multiprocessors\), GPU 2 sm_75"),
    ({"devices": "0,3,0"}, ArgumentError, "devices is '0,3,0', must name each GPU once"),
    ({"devices": "0,4"}, TargetError, "there is no GPU 4; the driver sees 4"),
    ({"devices": "0;1"}, ArgumentError, "devices is '0;1', must be 'all' or numbers"),
    ({"devices": [0, -1]}, ArgumentError, "devices is '0,-1', must be 'all' or numbers"),
    ({"devices": "0,1", "target": "cpu"}, ArgumentError, "devices is '0,1' with target 'cpu', must be left out"),
    ({"devices": "0,1", "target": "sm_90"}, ArgumentError, "with target 'sm_90', must be left out"),
    ({"devices": "0,1", "target": "cuda:1"}, ArgumentError, "must not both number devices"),
    ({"devices": "0,1", "rpc": "h:1", "key": "k"}, ArgumentError, "devices is '0,1' with rpc, must be left out"),
]


@pytest.mark.parametrize(("change", "error", "message"), DEVICES, ids=[m for _, _, m in DEVICES])
def test_wrong_devices_are_named(four_cards: None, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tune(["elementwise_attention"], progress=Silent(), **change)


def test_a_cpu_tunes_for_lesser_ones_of_its_kind_and_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_target("x86-64-v2").device == "x86_64-v2"
    monkeypatch.setattr(machine, "flags", frozenset)
    with pytest.raises(TargetError, match="tune on such a machine"):
        own_target("x86-64-v2")


def test_the_report_is_a_page_with_plots(tuned: tuple[Path, TuneReport], tmp_path: Path) -> None:
    from tilegen.tune import html

    _, report = tuned
    html.write(report, tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert "Best candidate so far" in page and "Roofline" in page
    assert all(result.name in page for result in report.results)


def test_the_report_says_what_random_search_would_have_found(tuned: tuple[Path, TuneReport]) -> None:
    _, report = tuned
    lines = report.lines()
    for result in report.results:
        best = min(s for s in result.history if s is not None)
        assert result.best_so_far[-1] == best
        assert result.random_seconds is not None and best <= result.random_seconds <= max(filter(None, result.history))
    assert sum("random search would have had" in line for line in lines) == len(report.results)
