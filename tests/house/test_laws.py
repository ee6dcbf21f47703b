"""The laws of the house, checked by reading the files."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for folder in ("tilegen", "ops", "schedules", "examples", "tests") for p in (ROOT / folder).rglob("*.py"))
TEXTS = (".py", ".md", ".toml", ".txt", ".jsonl", ".yml", ".cfg", "Makefile", "run", "test", "install", "types", "quickstart")

# Nothing under ops/ is below the expression: no gradient, no schedule, no device.
BELOW = {
    "a gradient by hand": r"autograd\.Function|save_for_backward|def backward\((?!config)|register_autograd",
    "a thread binding": r"thread_binding|threadIdx|blockIdx|sch\.(split|bind|vectorize|parallel)",
    "a target": r"\bsm_\d+|\bcuda\b|\bllvm\b|\bznver\d|\bavx\d*|\bnvidia\b|\bx86",
    "a schedule": r"tilegen\.schedules|tilegen import schedules|s_tir|meta_schedule",
}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("law", BELOW)
def test_a_mechanism_holds_no(law):
    broken = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in python_files("ops")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(BELOW[law], line, re.IGNORECASE)
    ]
    assert not broken


def test_schedules_name_no_mechanism():
    names = [path.parent.name for path in (ROOT / "ops").glob("*/__init__.py")]
    broken = [
        (path.name, name)
        for path in python_files("schedules")
        for name in names
        if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    ]
    assert names
    assert not broken


@pytest.mark.parametrize("folder", ["tilegen/runtime", "tilegen/torch", "tilegen/nn", "tilegen/bundle", "tilegen/cache"])
def test_no_module_of_the_front_imports_tvm_when_loaded(folder):
    """Inside functions it may: that is when something is compiled."""
    broken = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(folder)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any(
            name.split(".")[0] == "tvm"
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        )
    ]
    assert not broken


def tracked() -> list[Path]:
    """Files of the repository; all that lie here when this is no checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [p for p in ROOT.rglob("*") if p.is_file() and not {"build", ".venv", ".git"} & set(p.parts)]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_names_a_path_of_somebodys_machine():
    somewhere = re.compile(r"(?<![\w./-])/(?:home|root|Users|work|farm|mnt|scratch)/\w|\.\./shared")
    broken = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path.name.endswith(TEXTS) and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if somewhere.search(line)
    ]
    assert not broken


def test_no_python_file_is_longer_than_400_lines():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_no_stubs():
    words = re.compile(r"raise NotImplemented" + r"Error|#\s*(TODO|FIX" + r"ME|X" + r"XX)\b")
    broken = [
        f"{p.relative_to(ROOT)}:{n}"
        for p in SOURCES
        for n, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not broken


def test_every_folder_of_code_is_packaged(monkeypatch):
    """setup.py finds what is there; a folder without ``__init__.py`` would be missing from a wheel."""
    import runpy

    import setuptools

    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    roots = {"tilegen": ROOT / "tilegen", "tilegen.ops": ROOT / "ops", "tilegen.schedules": ROOT / "schedules"}
    folders = {
        ".".join([name, *path.parent.relative_to(root).parts]) for name, root in roots.items() for path in root.rglob("*.py")
    }
    assert folders <= set(given["packages"])
