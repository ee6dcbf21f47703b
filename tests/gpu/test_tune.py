"""The tuner on a GPU: gates that see what a wrong kernel does, times, records, and a build that uses them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tilegen import build
from tilegen.build import nvrtc
from tilegen.build.target import resolve
from tilegen.mechanisms import Instance, get
from tilegen.tune import TuneReport, html, logs, tune
from tilegen.tune.device import cases
from tilegen.tune.device.operators import Operator
from tilegen.tune.device.run import LIMITS
from tilegen.tune.local import Workshop
from tilegen.tune.pool import Job
from tilegen.tune.progress import Silent

pytestmark = pytest.mark.gpu
SIZES = {"B": 2, "T": 256}


def instance() -> Instance:
    found = get("elementwise_attention")
    return Instance(found, found.config(order=2), {"C": 64}, "float32")


SCALE = """
extern "C" __global__ void main_kernel(float* k, float* q, float* v, float* y, int B, int T) {
  int i = blockIdx.x * 256 + threadIdx.x, n = B * T * 64;
  BODY
}
"""

# What stands for a candidate, and how it must be called.
BODIES = {
    "wrong": ("if (i < n) y[i] = q[i];", "wrong"),
    "unwritten": ("", "unstable"),  # what was there before differs
    "outside": ("if (i < n) y[i] = 0; if (i == 0) y[n] = 1;", "outside"),
    "before": ("if (i < n) y[i] = 0; if (i == 0) y[-1] = 1;", "outside"),
    "input": ("if (i < n) { y[i] = 0; k[i] = 1; }", "outside"),
    "unstable": ("if (i < n) y[i] = (float)clock64();", "unstable"),
    "illegal": ("y[1ll << 44] = 1;", "crash"),
    "hang": ("while (true) { if (clock64() < 0) break; __nanosleep(100); }", "timeout"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A workshop with the case and the stage of a kernel."""
    folder = tmp_path_factory.mktemp("shop")
    target = resolve("cuda")
    operator = Operator(instance(), target, SIZES).sketch()
    with Workshop(target.tvm, limits=LIMITS, jobs=2) as workshop:
        jobs = []
        for place in operator.places:
            arguments = operator.job(*place) | {"decisions": [], "target": operator.text, "folder": str(folder)}
            jobs.append(Job(workshop.backend.build, arguments, 60, place))
        libraries = {reply.job.tag: reply.value["library"] for reply in workshop.builders.run(jobs)}
        operator.write_stage(libraries, folder / "stage.json")
        place = ("forward", 0)
        cases.prepare(**operator.owner(), sizes=operator.checks(), seed=0, folder=str(folder / "cases"))
        for name in operator.checks():
            operator.write_stage(libraries, folder / f"{name}.json", name, folder / "cases" / name)
        kernel = operator.kernels[place]
        yield workshop, folder, kernel, libraries[place]


def measured(shop: Any, library: str, limit: float = 5.0) -> Any:
    workshop, folder, kernel, _ = shop
    arguments = {
        "library": library,
        "stage": str(folder / "stage.json"),
        "names": kernel.names,
        "written": kernel.written,
        "scratch": kernel.scratch,
        "number": 0,
        "checked": [str(folder / f"{name}.json") for name in ("even", "ragged")],
        "repeats": 5,
        "hurry": None,
    }
    (reply,) = workshop.meter.run([Job(workshop.backend.measure, arguments, limit)])
    return reply


def test_a_right_kernel_passes_and_is_timed(shop: Any) -> None:
    reply = measured(shop, shop[3], 30)
    assert reply.kind == "ok", reply.message
    assert reply.value["kind"] == "ok", reply.value
    assert len(reply.value["samples"]) == 5
    assert all(1e-7 < s < 1e-2 for s in reply.value["samples"])


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_kernel_is_rejected_and_the_next_one_measured(shop: Any, name: str, tmp_path: Path) -> None:
    body, kind = BODIES[name]
    code, _ = nvrtc.compile(SCALE.replace("BODY", body), resolve("cuda").description["arch"])
    (tmp_path / "bad.cubin").write_bytes(code)
    launches = json.loads(Path(shop[3]).with_suffix(".json").read_text())["launches"]
    arguments = [{"tensor": name} for name in "kqvy"] + [{"size": "B"}, {"size": "T"}]
    bad = launches[0] | {"grid": ["((B * T) * 64 + 255) // 256", 1, 1], "block": [256, 1, 1], "shared": 0, "arguments": arguments}
    (tmp_path / "bad.json").write_text(json.dumps({"launches": [bad]}))
    reply = measured(shop, str(tmp_path / "bad.cubin"))
    found = reply.value["kind"] if reply.kind == "ok" else {"error": "crash"}.get(reply.kind, reply.kind)
    assert found == kind, (reply.kind, reply.value, reply.message)
    if kind in ("crash", "timeout"):
        shop[0].meter.discard()
    assert measured(shop, shop[3], 30).value["kind"] == "ok"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILEGEN_LOG_DIR", str(folder))
        begun = time.monotonic()
        report = tune(
            [instance()], shapes=SIZES, minutes=0.7, target="cuda", functions=("forward", "backward", "step"), progress=Silent()
        )
        yield folder, report, time.monotonic() - begun


def test_a_search_keeps_its_time_and_rejects_little(tuned: tuple[Path, TuneReport, float]) -> None:
    _, report, elapsed = tuned
    assert elapsed < 0.7 * 60 * 1.05 + 1
    assert not report.skipped
    assert len(report.results) >= 2
    tried = sum(r.trials for r in report.results)
    assert tried >= 30
    assert sum(sum(r.rejected.values()) for r in report.results) <= 0.1 * tried
    assert all(r.seconds <= 1.1 * (r.default_seconds or r.seconds) for r in report.results)


def test_the_next_build_uses_the_records(tuned: tuple[Path, TuneReport, float], tmp_path: Path) -> None:
    folder, report, _ = tuned
    assert all(not verdict.bad for verdict in logs.verify(folder)) if any(r.record for r in report.results) else True
    for target in ("cuda", "sm_" + str(resolve("cuda").machine.capability)):  # type: ignore[union-attr]
        out = tmp_path / target
        out.mkdir()
        build.compile(instance(), out, target=target, functions=("forward", "backward"))
        used = {f"{p['function']}.{p['kernel']}": p for p in json.loads((out / "manifest.json").read_text())["provenance"]}
        for result in report.results:
            if result.record and ".step" not in result.name and " step." not in result.name:
                found = used[result.name.split()[1]]
                assert found["source"] == ("user" if target == "cuda" else "nearest")
                assert list(found["decisions"].values()) == result.decisions


def test_the_report_is_a_page(tuned: tuple[Path, TuneReport, float]) -> None:
    page = html.page(tuned[1])
    assert page.count("data:image/png") == 2
    assert "Before and after" in page
