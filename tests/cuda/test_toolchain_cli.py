"""GPUs on the command line: show, export and doctor."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tilegen.bundle import read
from tilegen.cli.app import app

OP = "elementwise_attention"
SMALL = ["-s", "order=2", "-s", "C=64", "--dtype", "bfloat16"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("source", "__global__ void __launch_bounds__("),
        ("tir", 'T.launch_thread("blockIdx.x"'),
        ("trace", "cuda.walk, default, record None"),
    ],
)
def test_show_prints_what_a_gpu_runs(stage, said):
    text = run("show", OP, "--stage", stage, "--target", "sm_90", "--function", "forward", *SMALL)
    assert said in text
    assert "tilegen_backward" not in text


def test_a_gpu_without_the_dtype_is_an_error_of_one_line():
    text = run("show", OP, "--stage", "source", "--target", "sm_75", *SMALL, code=1)
    assert text.strip() == "error: target is sm_75, which has no bfloat16; use float16 or float32, or a target from sm_80 on"


def test_export_for_two_gpus(tmp_path):
    out = tmp_path / "ea.tilegen"
    text = run("export", OP, "-o", str(out), "--target", "sm_90,sm_80", "--functions", "forward", *SMALL)
    assert "for sm_80 and sm_90 (" in text
    assert " registers a thread, no spills" in text
    manifest, files = read(out)
    assert manifest.target["archs"] == ["sm_80", "sm_90"] and list(manifest.functions) == ["forward"]
    assert list(files) == ["lib.so"]


def test_doctor_names_the_compilers():
    tools = json.loads(run("doctor", "--quick", "--json"))["tools"]
    assert "nvcc" in tools["nvcc"] and tools["nvcc"].rstrip(")")[-1].isdigit()
    assert "headers in" in tools["NVRTC"] or tools["NVRTC"].startswith("not found: ")


def test_doctor_names_the_driver(on_gpu):
    code = "from tilegen.cli.app import app\ntry:\n    app(['doctor', '--quick', '--json'])\nexcept SystemExit:\n    pass"
    working = json.loads(on_gpu(code, version=12080)[0])
    assert working["devices"]["driver"] == "runs CUDA up to 12.8"
    broken = json.loads(on_gpu(code, init=999)[0])
    assert "the NVIDIA driver does not start (error 999)" in broken["devices"]["driver"]
    assert any("driver" in problem["what"] for problem in broken["problems"])
