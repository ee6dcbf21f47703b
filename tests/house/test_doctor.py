"""The doctor names what is wrong and how to mend it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tilegen import _tvm, doctor


def problems(findings):
    return {f.name: f for f in findings if f.remedy}


def test_this_machine_is_in_order_without_the_compiler():
    report = doctor.report(doctor.examine(try_compiler=False))
    assert report["problems"] == []
    assert report["ok"]
    assert report["versions"]["apache-tvm"].startswith("0.27")
    assert "cores" in report["devices"]["cpu"]


def test_the_report_is_json():
    report = doctor.report([doctor.Finding("tools", "linker", "not found", "install gcc")])
    assert json.loads(json.dumps(report)) == {
        "ok": False,
        "problems": [{"what": "linker: not found", "remedy": "install gcc"}],
        "tools": {"linker": "not found"},
    }


def test_a_missing_package_comes_with_its_install_command(monkeypatch):
    real = _tvm.installed
    monkeypatch.setattr(_tvm, "installed", lambda name: None if name == "psutil" else real(name))
    found = problems(doctor.versions())
    assert found.keys() == {"psutil"}
    assert found["psutil"].remedy == "pip install psutil"


@pytest.mark.parametrize("present", ["xgboost", "xgboost-cpu"])
def test_either_build_of_xgboost_will_do(monkeypatch, present):
    real = _tvm.installed
    monkeypatch.setattr(
        _tvm, "installed", lambda name: ("3.2.0" if name == present else None) if "xgboost" in name else real(name)
    )
    assert not problems(doctor.versions())


def test_no_build_of_xgboost_is_one_problem(monkeypatch):
    real = _tvm.installed
    monkeypatch.setattr(_tvm, "installed", lambda name: None if "xgboost" in name else real(name))
    assert problems(doctor.versions()).keys() == {"xgboost-cpu"}


def test_the_crashing_tvm_ffi_is_found_without_importing_it(monkeypatch):
    real = _tvm.problems
    monkeypatch.setattr(_tvm, "problems", lambda: real({"apache-tvm": "0.27.0", "apache-tvm-ffi": "0.1.15.post2"}.get))
    found = problems(doctor.versions())["apache-tvm-ffi"]
    assert "0.1.15.post2" in found.value
    assert found.remedy == _tvm.MEND


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    """A file where the folder should be: true for every user, root included."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEGEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "TILEGEN_CACHE_DIR" in problems(doctor.folders())["cache"].remedy


def test_folders_are_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("TILEGEN_LOG_DIR", str(tmp_path))
    (tmp_path / "x86_64-v3").mkdir()
    (tmp_path / "x86_64-v3" / "ema.jsonl").write_text("")
    found = {f.name: f.value for f in doctor.folders()}
    assert found["log"] == f"{tmp_path} (1 logs)"


def test_no_linker_is_a_problem_with_its_remedy(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    found = problems(doctor.tools())
    assert found.keys() == {"linker"}
    assert "install" in found["linker"].remedy


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "fails with status -6: no message"),
        ("raise ImportError('libtvm.so is gone')", "fails with status 1: ImportError: libtvm.so is gone"),
    ],
    ids=["crash", "exception"],
)
def test_a_compiler_that_dies_is_reported_not_died_of(monkeypatch, code, said):
    monkeypatch.setattr(doctor, "TRIAL", code)
    (found,) = doctor.compiler()
    assert said in found.value
    assert found.remedy == _tvm.MEND


def test_a_compiler_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 0.2)
    (found,) = doctor.compiler()
    assert "no answer within" in found.value


def test_the_compiler_works_here_and_names_its_target():
    found = {f.name: f for f in doctor.compiler()}
    assert found["tvm"].value.startswith("works")
    assert not problems(found.values())
    assert found["target cpu"].value["kind"] == "llvm"


def test_a_tool_that_does_not_run_is_said_to(monkeypatch):
    def broken(*args, **options):
        raise subprocess.TimeoutExpired("cc", 30)

    monkeypatch.setattr(subprocess, "run", broken)
    assert "does not run" in next(iter(doctor.tools())).value
