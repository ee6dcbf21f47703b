"""The cache key changes with everything that the library depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilegen.cache import fingerprint
from tilegen.cache.fingerprint import expression_hash
from tilegen.mechanisms import Instance, Mechanism


@dataclasses.dataclass(frozen=True)
class Config:
    order: int = 2


def expression(config: Any, dims: Any, **tensors: Any) -> Any:
    return tensors


def instance(order: int = 2, dtype: str = "float32", C: int = 16, function: Callable[..., Any] = expression) -> Instance:
    mechanism = Mechanism("scale", Config, ("B",), ("C",), lambda c: (), lambda c: (), function, expression, {})
    return Instance(mechanism, Config(order), {"C": C}, dtype)


def test_equal_instances_have_equal_keys() -> None:
    assert fingerprint(instance(), {"kind": "llvm", "mcpu": "znver4"}) == fingerprint(
        instance(), {"mcpu": "znver4", "kind": "llvm"}
    )


def test_everything_that_matters_changes_the_key() -> None:
    target = {"kind": "llvm"}
    keys = {
        fingerprint(instance(), target),
        fingerprint(instance(order=4), target),
        fingerprint(instance(dtype="float64"), target),
        fingerprint(instance(C=32), target),
        fingerprint(instance(function=lambda config, dims, **tensors: None), target),
        fingerprint(instance(), {"kind": "llvm", "mcpu": "znver4"}),
        fingerprint(instance(), target, ["record-1"]),
        fingerprint(instance(), target, functions=["forward"]),
    }
    assert len(keys) == 8


def test_version_of_the_compiler_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["tilegen.cache.fingerprint"]
    before = fingerprint(instance(), {})
    monkeypatch.setattr(module, "_installed", lambda: (("apache-tvm", "0.28"),))
    assert fingerprint(instance(), {}) != before


def test_source_of_the_compiler_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["tilegen.cache.fingerprint"]
    (tmp_path / "rule.py").write_text("TILE = 16\n")
    monkeypatch.setattr(module, "_folder", lambda name: tmp_path)

    def hashed() -> str:
        module.compiler_hash.cache_clear()
        return str(module.compiler_hash())

    try:
        before = hashed()
        assert hashed() == before
        (tmp_path / "rule.py").write_text("TILE = 32\n")
        assert hashed() != before
    finally:
        module.compiler_hash.cache_clear()


def load(folder: Path, text: str, helper: str = "") -> Any:
    """The function `f` of a module of the user's with this text."""
    (folder / "helper_of_user.py").write_text(helper)
    path = folder / "user_module.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("user_module", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules.pop("helper_of_user", None)
    import linecache

    linecache.clearcache()
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_module"] = module
    spec.loader.exec_module(module)
    return SimpleNamespace(hash=expression_hash(module.f))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("K = 1\ndef f(x): return x + K", "K = 2\ndef f(x): return x + K"),
        ("def f(x, k=1): return x + k", "def f(x, k=2): return x + k"),
        ("def g(x): return 1\ndef f(x): return g(x)", "def g(x): return 2\ndef f(x): return g(x)"),
        (
            "def make(k):\n def f(x): return x + k\n return f\nf = make(1)",
            "def make(k):\n def f(x): return x + k\n return f\nf = make(2)",
        ),
    ],
    ids=["body", "global", "default", "helper", "closure"],
)
def test_a_users_function_enters_with_all_it_uses(one: str, other: str, tmp_path: Path) -> None:
    assert load(tmp_path, one).hash == load(tmp_path, one).hash
    assert load(tmp_path, one).hash != load(tmp_path, other).hash


@pytest.mark.parametrize(
    "how", ["import helper_of_user as h\ndef f(x): return h.g(x)", "from helper_of_user import g\ndef f(x): return g(x)"]
)
def test_a_users_other_modules_enter_too(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or the second helper, written within a second, is not read
    one = load(tmp_path, how, "def g(x): return 1\n").hash
    assert load(tmp_path, how, "def g(x): return 1\n").hash == one
    assert load(tmp_path, how, "def g(x): return 2\n").hash != one


def test_a_key_needs_no_tvm() -> None:
    code = """
import sys
from tilegen import cache, mechanisms, ops
from tilegen.cache.fingerprint import compiler_hash, expression_hash
compiler_hash()
expression_hash(mechanisms.get("elementwise_attention").expression)
print([name for name in sys.modules if name == "tvm" or name.startswith("tvm.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
