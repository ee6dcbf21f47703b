"""The tuner: MetaSchedule's search, wrapped so that only right and reproducible winners are recorded.

`tune` is what ``tilegen tune`` calls, `search` finds the schedule of one kernel, `records.lookup` is what a build asks.
Importing this package imports no TVM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilegen.tune.report import SearchResult, TuneReport
    from tilegen.tune.run import tune
    from tilegen.tune.session import search
    from tilegen.tune.task import Task

_HOMES = {"tune": "run", "search": "session", "Task": "task", "TuneReport": "report", "SearchResult": "report"}

__all__ = ["SearchResult", "Task", "TuneReport", "search", "tune"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"tilegen.tune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tilegen.tune' has no attribute {name!r}")
