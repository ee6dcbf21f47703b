"""What a search on a GPU leaves behind: the record of a kernel's winner, and the result for the report."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from tilegen.build.target import BuildTarget
from tilegen.bundle import gpu
from tilegen.tune import logs, records
from tilegen.tune.device.hunt import Hunt
from tilegen.tune.records import Record
from tilegen.tune.report import SearchResult
from tilegen.tune.session import Standing, versions


def write(hunt: Hunt, best: Standing, verdict: dict[str, Any]) -> dict[str, str]:
    """Put the record of what won into the log: ``{"record", "log"}``."""
    made, path = record(hunt, best, verdict), records.log_path(hunt.log_dir, hunt.kernel.key.host, hunt.kernel.key.op)
    logs.append(path, made)
    return {"record": made.id, "log": str(path)}


def record(hunt: Hunt, best: Standing, verdict: dict[str, Any]) -> Record:
    """The record of what won the ranking of a kernel."""
    operator, known = hunt.owner.operator, hunt.known
    return Record(
        key=hunt.kernel.key,
        trace=[[name, value] for name, value in zip(hunt.kernel.space.names, best.decisions, strict=True)],
        decisions=list(best.decisions),
        seconds=verdict["seconds"],
        spread=verdict["spread"],
        default_seconds=verdict["default_seconds"],
        sizes=dict(operator.sizes),
        device=device_text(operator.target),
        versions=versions() | {"cuda": compiler_release()},
        trials=len(hunt.journal.trials),
        seed=hunt.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        supersedes=known.id if known and known.source != "nearest" else None,
    )


def result(hunt: Hunt, verdict: dict[str, Any], bandwidth: float) -> SearchResult:
    """The result of a kernel that is ranked."""
    journal = hunt.journal
    return SearchResult(
        name=hunt.kernel.name,
        trials=len(journal.trials),
        space=hunt.kernel.space.total,
        seconds=verdict["seconds"],
        spread=verdict["spread"],
        default_seconds=verdict["default_seconds"],
        before_seconds=verdict["before_seconds"],
        decisions=list(verdict["decisions"]),
        stopped=verdict["stopped"],
        rejected=journal.failures(),
        correlation=verdict["correlation"],
        record=verdict["record"],
        log=Path(verdict["log"]) if verdict["log"] else None,
        history=journal.history(),
        reasons=journal.reasons(),
        pruned=journal.pruned(),
        traffic=hunt.kernel.traffic,
        flops=hunt.kernel.flops,
        bandwidth=bandwidth,
    )


def device_text(target: BuildTarget) -> dict[str, Any]:
    """What a record says of the device."""
    major, minor = gpu.driver().version
    return {
        "name": target.device,
        "arch": target.description["arch"],
        "driver": f"{major}.{minor}",
        **dataclasses.asdict(target.machine),
    }


def compiler_release() -> str:
    """The release of the CUDA compiler that candidates are built with."""
    from tilegen.build import compilers

    return compilers.release(compilers.choose("nvrtc"))
