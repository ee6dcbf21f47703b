"""The command line, through the application itself; what is slow is compiled for a width of 8."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tilegen.cli.app import app
from tilegen.errors import TilegenError

OP = "elementwise_attention"
SMALL = ["-s", "order=2", "-s", "C=8"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def test_help_names_every_command():
    text = run("--help")
    assert all(command in text for command in ("doctor", "list", "show", "tune", "export", "bench", "logs"))


def test_version():
    import tilegen

    assert run("--version").strip() == tilegen.__version__


def test_the_console_script_and_the_module_are_the_same_program():
    by_module = subprocess.run([sys.executable, "-m", "tilegen", "--help"], capture_output=True, text=True)
    assert by_module.returncode == 0, by_module.stderr
    assert "doctor" in by_module.stdout


def test_doctor_prints_one_json_document():
    assert json.loads(run("doctor", "--quick", "--json"))["ok"] is True


def test_doctor_prints_a_table():
    assert "nothing wrong" in run("doctor", "--quick")


def test_doctor_ends_with_an_error_when_something_is_wrong(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    text = run("doctor", "--quick", code=1)
    assert "linker" in text
    assert "mend it:" in text


def test_list_knows_every_operator():
    from tilegen import mechanisms

    rows = json.loads(run("list", "--json"))
    assert [row["name"] for row in rows] == mechanisms.names()
    row = next(row for row in rows if row["name"] == OP)
    assert row["inputs"] == ["q[B,T,C]", "k[B,T,C]", "v[B,T,C]"]
    assert row["options"]["order"] == 6
    assert OP in run("list")


def test_an_option_with_given_values_takes_each_of_them():
    from tilegen import mechanisms
    from tilegen.cli.instance import split

    for kind in ("none", "head", "token"):
        assert split(mechanisms.get("linear_attention"), [f"decay={kind}"])[0] == {"decay": kind}


@pytest.fixture
def windowed(monkeypatch):
    """A mechanism whose config has an option without a default."""
    import dataclasses

    from tilegen import mechanisms

    @dataclasses.dataclass(frozen=True)
    class Config:
        window: int
        order: int = 2

    specs = {"inputs": lambda config: (), "outputs": lambda config: ()}
    found = dataclasses.replace(mechanisms.get(OP), name="windowed", config=Config, **specs)
    monkeypatch.setitem(mechanisms._REGISTRY, "windowed", found)
    return found


def test_an_option_without_a_default_must_be_given(windowed):
    assert "windowed has no default for window; give it, for instance --set window=128" in run("show", "windowed", code=1)


def test_an_option_without_a_default_is_listed_as_required(windowed):
    row = next(row for row in json.loads(run("list", "--json")) if row["name"] == "windowed")
    assert row["options"] == {"window": "required", "order": 2}


def test_settings_for_all_operators_reach_those_that_have_them(windowed):
    from tilegen.cli.instance import typical

    assert typical(windowed) == ["window=128"]
    assert typical(windowed, ["window=7", "C=8", "heads=3"]) == ["window=7", "C=8"]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("te", "k2[b: B, i: T, c: 8] float32 = k[b, i, c] * k[b, i, c]"),
        ("grad", ", reverse"),
        ("plan", "walk at [B, 8] along T, from the end"),
        ("tir", "@T.prim_func"),
        ("source", "define"),
        ("trace", "sch.vectorize"),
    ],
)
def test_show_prints_each_stage(stage, said):
    assert said in run("show", OP, "--stage", stage, *SMALL)


def test_show_of_one_function_leaves_the_others_out():
    text = run("show", OP, "--stage", "tir", "--function", "step", *SMALL)
    assert text.count("@T.prim_func") == 1
    assert "# step" in text


def test_show_prints_the_same_text_twice():
    """Otherwise it could not be compared between versions."""
    assert run("show", OP, "--stage", "tir", *SMALL) == run("show", OP, "--stage", "tir", *SMALL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "attention"), "op is 'attention', must be one of"),
        (("show", OP, "--stage", "ptx"), "--stage is 'ptx', must be one of te, grad, plan, tir, source, trace"),
        (("show", OP, "--function", "sideways"), "--function is 'sideways', must be one of forward"),
        (("show", OP, "-s", "order=3"), "order is 3, must be an even integer"),
        (("show", OP, "-s", "order"), "--set is 'order', must be NAME=VALUE"),
        (("show", OP, "-s", "heads=3"), "has the names order"),
        (("show", OP, "-s", "order=two"), "its value must be int"),
        (("show", OP, "-s", "causal=maybe"), "its value must be bool"),
        (("show", "linear_attention", "-s", "decay=often"), "its value must be none or head or token"),
        (("show", OP, "-s", "C=0"), "a size must be at least 1"),
        (("show", OP, "--dtype", "int8"), "--dtype is 'int8', must be one of"),
        (("show", OP, "--stage", "tir", "--target", "pentium9"), "target is 'pentium9'"),
        (("bench", OP, "--sizes", "B=0"), "--sizes has 'B=0'"),
        (("bench", OP, "--lengths", "64,x"), "--lengths is '64,x'"),
        (("bench", OP, "--device", "abacus"), "--device is 'abacus'"),
        (("bench", OP, "--dtype", "int8"), "--dtype is 'int8'"),
        (("export", OP, "-o", "x.tilegen", "--functions", "sideways"), "sideways"),
        (("logs", "verify", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
    ],
)
def test_a_mistake_is_one_readable_line(arguments, said):
    text = run(*arguments, code=1)
    assert text.startswith("error: ")
    assert said in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(app, ["--debug", "show", OP, "-s", "order=3"])
    assert isinstance(result.exception, TilegenError)


def test_an_error_that_is_ours_keeps_its_traceback(monkeypatch):
    from tilegen import doctor

    def broken(**options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    assert isinstance(CliRunner().invoke(app, ["doctor"]).exception, RuntimeError)


@pytest.mark.parametrize("name", ["ea.tilegen", "folder"])
def test_what_export_writes_runs_in_a_fresh_process_without_the_compiler(tmp_path, name):
    text = run("export", OP, "-o", str(tmp_path / name), *SMALL)
    assert "forward(q, k, v) -> y" in text
    code = """
import sys
import numpy as np
from tilegen.runtime import load
q = np.zeros((1, 3, 8), "float32")
v = np.arange(24, dtype="float32").reshape(1, 3, 8)
y = np.asarray(load(sys.argv[1]).forward(q, q, v))
np.testing.assert_allclose(y, np.cumsum(v, 1) / np.arange(1, 4)[None, :, None], rtol=1e-6)
assert "tvm" not in sys.modules
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_export_does_not_write_into_a_folder_that_is_in_use(tmp_path):
    (tmp_path / "mine").write_text("")
    assert "exists" in run("export", OP, "-o", str(tmp_path), *SMALL, code=1)


def test_bench_checks_then_measures_then_draws(tmp_path, monkeypatch):
    import torch

    # Compiling takes a minute; what is compared with is PyTorch's own affair.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    picture = tmp_path / "bench.png"
    options = ["--sizes", "B=1,C=8", "--lengths", "16,32", "--repeats", "2", "--plot", str(picture), "-s", "order=2", "--json"]
    result = CliRunner().invoke(app, ["bench", OP, *options, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert {row["contender"] for row in data["rows"]} == {"tilegen", "torch.compile", "torch eager"}
    assert {row["direction"] for row in data["rows"]} == {"forward", "forward+backward"}
    assert {row["sizes"]["T"] for row in data["rows"]} == {16, 32}
    assert all(row["speedup"] == 1 for row in data["rows"] if row["contender"] == "torch.compile")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_logs_of_nobody_are_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEGEN_LOG_DIR", str(tmp_path / "none"))
    assert "no logs in" in run("logs", "verify")


def test_logs_verify_says_which_line_is_bad(tmp_path):
    log = tmp_path / "x86_64-v3" / f"{OP}.jsonl"
    log.parent.mkdir()
    log.write_text("{}\nnot json\n")
    text = run("logs", "verify", str(tmp_path), code=1)
    assert "2 bad line(s)" in text
    assert "line 2" in text
    found = json.loads(run("logs", "verify", str(tmp_path), "--json", code=1))
    assert [line for line, _ in found[0]["bad"]] == [1, 2]
    assert log.read_text() == "{}\nnot json\n"


def test_logs_merge_of_nothing_adds_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    assert "0 new record(s)" in run("logs", "merge", str(tmp_path / "a"), "--into", str(tmp_path / "b"))


def test_logs_prune_keeps_at_least_one(tmp_path):
    assert "keep is 0, must be at least 1" in run("logs", "prune", str(tmp_path), "--keep", "0", code=1)
