"""Sub-quadratic attention from one tensor expression.

``from tilegen import ops, nn`` is all that training needs.  Importing this package costs nothing: every part is loaded
when it is first used, and the compiler (TVM) only when something has to be compiled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PARTS = frozenset(
    "bench build bundle cache doctor errors nn ops plan runtime settings torch tune".split()  # noqa: SIM905
)

# Single names, and the modules that define them.
_NAMES = {"mechanism": "tilegen.custom", "Instance": "tilegen.mechanisms"}

if TYPE_CHECKING:
    from tilegen import bench, build, bundle, cache, doctor, errors, nn, ops, plan, runtime, settings, torch, tune
    from tilegen.custom import mechanism
    from tilegen.mechanisms import Instance

__all__ = [  # noqa: RUF022  (in the order of use)
    "ops", "nn", "mechanism", "Instance", "runtime", "errors", "settings",
    "bench", "build", "bundle", "cache", "doctor", "plan", "torch", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a part of the package on first use (PEP 562)."""
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'tilegen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_PARTS | set(_NAMES) | set(globals()))
