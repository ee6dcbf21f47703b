"""One short name for everything that a compiled library depends on.  Imports no TVM, costs milliseconds."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tilegen

# What turns an expression into code.
_COMPILER = ("tilegen.expression", "tilegen.autodiff", "tilegen.plan", "tilegen.build", "tilegen.schedules")
_MODULES = ("mechanisms.py", "_tvm.py")  # of tilegen itself
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_LIBRARIES = frozenset({"tilegen", "tvm", "tvm_ffi", "torch", "numpy"})


def fingerprint(instance: Any, target: Any, records: Iterable[str] = (), **more: Any) -> str:
    """The cache key of a compiled instance.

    Parameters
    ----------
    instance : a `tilegen.mechanisms.Instance`.
    target : what it is compiled for; anything that `json` can write.
    records : identifiers of the tuning records whose schedules are used.
    more : whatever else changes the library.

    Returns
    -------
    str
        Canonical JSON: equal when and only when the library would be equal.
    """
    parts = {
        "instance": json.loads(instance.key),
        "expression": expression_hash(instance.mechanism.expression),
        "compiler": compiler_hash(),
        "target": target,
        "records": sorted(records),
        "versions": versions(),
        "more": more,
    }
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def versions() -> dict[str, str]:
    """The versions of tilegen and of the compiler, read from package metadata."""
    return {"tilegen": tilegen.__version__} | dict(_installed())


@functools.cache
def _installed() -> tuple[tuple[str, str], ...]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "none"

    return tuple((name, version(name)) for name in _PACKAGES)


@functools.cache
def compiler_hash() -> str:
    """The hash of the compiler's own source files, once a process."""
    root = Path(tilegen.__file__).parent
    folders = [folder for name in _COMPILER if (folder := _folder(name))]
    return _hash_files([*(root / name for name in _MODULES), *(path for folder in folders for path in _sources(folder))])


def expression_hash(expression: str | Callable[..., Any]) -> str:
    """The hash of what an expression computes: of its package's source files, or of a function of the user's.

    A function enters with its source, its defaults, and the values that it closes over or reads from its module.
    """
    if isinstance(expression, str):
        return _module_hash(expression.partition(":")[0])
    return hashlib.sha256("\0".join(_function_parts(expression, set())).encode()).hexdigest()


@functools.cache
def _module_hash(name: str) -> str:
    """All sources of the module's folder, and the expressions of its neighbours, which it may be made of."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return f"no source: {name}"
    origin = Path(spec.origin)
    neighbours = origin.parent.parent.glob(f"*/{origin.name}")
    return _hash_files([*_sources(origin.parent), *neighbours])


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _sources(folder: Path) -> Iterable[Path]:
    return folder.rglob("*.py")


def _hash_files(paths: Iterable[Path]) -> str:
    """Hash names and contents; names relative to nothing but their folder, so that a copy elsewhere is the same."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        data = path.read_bytes()
        total.update(f"{path.parent.name}/{path.name} {len(data)}\n".encode() + data)
    return total.hexdigest()


def _function_parts(value: Any, seen: set[Any]) -> Iterator[str]:
    """Text that changes whenever a function of the user's does, following what it uses as far as that is the user's too."""
    if inspect.ismodule(value) or inspect.isclass(value):
        module = value if inspect.ismodule(value) else inspect.getmodule(value)
        yield getattr(value, "__qualname__", "") + getattr(module, "__name__", "")
        if module is not None and _is_users(module.__name__) and module not in seen:
            seen.add(module)
            with contextlib.suppress(OSError, TypeError):
                yield inspect.getsource(module)
        return
    code = getattr(value, "__code__", None)
    if code is None:
        yield _constant(value)
        return
    if code in seen:
        return
    seen.add(code)
    yield f"{value.__module__}.{value.__qualname__}"
    if not _is_users(value.__module__):
        return
    try:
        yield inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt
        yield f"{code.co_code.hex()} {code.co_names} {[c for c in code.co_consts if not inspect.iscode(c)]}"
    yield _constant((value.__defaults__, value.__kwdefaults__))
    variables = inspect.getclosurevars(value)
    for name, used in sorted({**variables.nonlocals, **variables.globals}.items()):
        yield name
        yield from _function_parts(used, seen)


def _is_users(module: str) -> bool:
    """Whether a module is neither a library nor tilegen, whose versions and sources are in the key already."""
    top = module.partition(".")[0]
    return top == "__main__" or top not in sys.stdlib_module_names | _LIBRARIES


def _constant(value: Any) -> str:
    """A value as text that is equal in every process: no addresses."""
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
