"""A wrong pair of TVM and tvm-ffi is one readable error before TVM is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tilegen import _tvm
from tilegen.errors import TilegenError, VersionError

GOOD = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


@pytest.mark.parametrize(
    ("version", "release"), [("0.27.0.post1", (0, 27, 0)), ("0.1.14", (0, 1, 14)), ("2.13.0+cpu", (2, 13, 0)), ("unknown", ())]
)
def test_release_is_the_numeric_part(version, release):
    assert _tvm.release(version) == release


def test_the_tested_pair_has_no_problem():
    assert _tvm.problems(GOOD.get) == []


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("apache-tvm-ffi", "0.1.15.post1", "apache-tvm-ffi is 0.1.15.post1, must be at least 0.1.14 and below 0.1.15"),
        ("apache-tvm-ffi", "0.1.13", "apache-tvm-ffi is 0.1.13"),
        ("apache-tvm-ffi", None, "apache-tvm-ffi is not installed"),
        ("apache-tvm", "0.26.1", "apache-tvm is 0.26.1, must be at least 0.27 and below 0.28"),
        ("apache-tvm", "0.28.0", "apache-tvm is 0.28.0"),
        ("apache-tvm", None, "apache-tvm is not installed"),
        ("apache-tvm", "garbage", "apache-tvm is garbage"),
    ],
)
def test_a_wrong_version_is_named_with_the_command_that_mends_it(package, version, said):
    with pytest.raises(VersionError) as error:
        _tvm.check({**GOOD, package: version}.get)
    assert said in str(error.value)
    assert "pip install" in str(error.value)
    assert isinstance(error.value, TilegenError)


WRONG_PAIR = """
import importlib, importlib.abc, sys
from importlib import metadata
real = metadata.version
metadata.version = lambda name: "0.1.15.post2" if name == "apache-tvm-ffi" else real(name)
from tilegen.errors import VersionError
"""
"""A process whose metadata names the crashing release, as after ``pip install -U apache-tvm-ffi``."""


def test_the_first_compile_raises_before_tvm_is_imported(tmp_path):
    code = f"""{WRONG_PAIR}
from pathlib import Path
from tilegen import build
from tilegen.cli.instance import instance
try:
    build.compile(instance("elementwise_attention", ["C=8"]), Path(sys.argv[1]))
except VersionError as error:
    print(error)
assert "tvm" not in sys.modules
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "0.1.15.post2" in child.stdout


def modules() -> list[str]:
    """The names of all modules but those of mechanisms, whose expressions are loaded by the compiler, after the check."""
    root = Path(__file__).parents[2]
    roots = {"tilegen": root / "tilegen", "tilegen.schedules": root / "schedules"}
    return [
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        for name, folder in roots.items()
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__main__.py"
    ]


def test_no_module_imports_tvm_before_it_is_checked():
    """Each module, imported first, either does without TVM or raises `VersionError` where the versions are wrong."""
    code = f"""{WRONG_PAIR}
class NoTVM(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "tvm":
            raise RuntimeError("unchecked import of tvm")

sys.meta_path.insert(0, NoTVM())
checked = 0
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except VersionError:
        checked += 1
    except RuntimeError as error:
        print(module, error)
print(checked, "checked")
"""
    child = subprocess.run([sys.executable, "-c", code, *modules()], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    *unchecked, last = child.stdout.splitlines()
    assert unchecked == []
    assert int(last.split()[0]) >= 4


def test_importing_tvm_after_ensure_does_not_scan_all_modules():
    """The stock `inspect.stack` looks for the module of every frame in all of ``sys.modules``."""
    _tvm.ensure()
    import inspect

    def inner():
        return inspect.stack()

    frames = inner()
    assert [frame.function for frame in frames[:2]] == ["inner", "test_importing_tvm_after_ensure_does_not_scan_all_modules"]
    assert frames[0].filename == __file__
    assert "return inspect.stack()" in frames[0].code_context[0]
    assert frames[0].frame.f_locals.keys() == {"inspect"}


def test_ensure_is_idempotent():
    import inspect

    _tvm.ensure()
    patched = inspect.stack
    _tvm.ensure()
    _tvm.worker_init()
    assert inspect.stack is patched
