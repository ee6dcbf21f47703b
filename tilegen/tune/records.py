"""What a tuning log holds: one checksummed JSON line per record, and how the right one is found.

A log is ``<folder>/<host name>/<op>.jsonl``.  This module imports neither TVM nor torch: looking a record up is part of
every warm start.  Writing, merging and pruning are in `tilegen.tune.logs`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tilegen import settings
from tilegen.build.host import cores
from tilegen.mechanisms import default_options

SCHEMA = 1
SOURCES = ("user", "shipped", "nearest")


class TuningLogWarning(UserWarning):
    """A tuning log had lines that cannot be used; they were set aside."""


@dataclass(frozen=True, eq=False)
class RecordKey:
    """What a record is for.  Two keys are equal when they say the same, whatever the order of their options.

    `function` is "forward", "backward" or "step", `kernel` the kernel's name in its plan, `rule` the schedule rule that
    made the search space, `host` the folder name of the device (``tilegen.build.target.host_name()``), `arch` the architecture of a
    GPU, "sm_90": records of one card serve the others of its architecture, and builds for the architecture by name.
    """

    op: str
    config: Mapping[str, Any]
    static: Mapping[str, int]
    dtype: str
    function: str
    kernel: str
    rule: str
    rule_version: int
    host: str
    arch: str = ""

    @property
    def task(self) -> str:
        """Canonical text of everything but the device: what must agree for a record of another device to fit.

        Options at their default do not count: an operator may have got options since a record was written.
        """
        parts = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("host", "arch")}
        defaults = default_options(self.op)
        parts["config"] = {
            k: v for k, v in parts["config"].items() if k not in defaults or canonical(v) != canonical(defaults[k])
        }
        return canonical(parts)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this key, for file names."""
        return hashlib.sha256(f"{self.host}\n{self.task}".encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordKey) and (self.host, self.task) == (other.host, other.task)

    def __hash__(self) -> int:
        return hash((self.host, self.task))


@dataclass(frozen=True)
class Record:
    """A winner of a search: the trace that schedules one kernel, and how it was measured.

    Parameters
    ----------
    trace : ``sch.trace.as_json()`` of the winning schedule; on a GPU [name, value] of each decision.
    decisions : the value of each sampled decision, in the order of the trace.
    seconds, spread : median time of one call and the distance between its quartiles, in seconds.
    default_seconds : the same median for the rule's untuned default, from the same final ranking;
        None when the default is not valid.
    sizes : the sizes at which it was measured, for instance ``{"B": 4, "T": 2048}``.
    device, versions : where it was measured, and with what.
    trials, seed : length and seed of the search that found it.
    created : UTC time, ISO 8601.
    supersedes : id of the record that this one beat in a direct comparison, or None.
    """

    key: RecordKey
    trace: list[Any]
    decisions: list[Any]
    seconds: float
    spread: float
    default_seconds: float | None
    sizes: dict[str, int]
    device: dict[str, Any]
    versions: dict[str, str]
    trials: int
    seed: int
    created: str
    supersedes: str | None = None
    source: str = field(default="", compare=False)
    """Where a lookup found it: "user", "shipped" or "nearest"; not written."""

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the checksum."""
        return checksum(self.body())[:16]

    def body(self) -> dict[str, Any]:
        """The record as plain JSON values, without its checksum."""
        body = dataclasses.asdict(self)
        del body["source"]
        if not self.key.arch:  # as it was before GPUs: the checksums of older records name them
            del body["key"]["arch"]
        return {"schema": SCHEMA, **body}


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(body: Mapping[str, Any]) -> str:
    """sha256 of the canonical text of a line without its checksum."""
    return hashlib.sha256(canonical(body).encode()).hexdigest()


def encode(record: Record) -> str:
    """One line of a log, without the newline."""
    body = record.body()
    return canonical({**body, "sha256": checksum(body)})


def decode(line: str) -> Record:
    """The record in one line of a log.

    Raises
    ------
    ValueError
        When the line is not JSON, its checksum is wrong, its schema is another one, or a field is missing or mistyped.
    """
    body = json.loads(line)
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    stated = body.pop("sha256", None)
    if stated != checksum(body):
        raise ValueError("the checksum does not match")
    if body.pop("schema", None) != SCHEMA:
        raise ValueError(f"the schema is not {SCHEMA}")
    return msgspec.convert(body, type=Record)


def log_path(folder: Path, host: str, op: str) -> Path:
    """The log of one op on one device."""
    return folder / host / f"{op}.jsonl"


def split_lines(text: str) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records in the text of a log, and the lines that are none, each with the reason."""
    good, bad = [], []
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            good.append(decode(line))
        except ValueError as error:  # json.JSONDecodeError and msgspec.ValidationError are ValueErrors
            bad.append((line, str(error)))
    return good, bad


_parsed: dict[Path, tuple[tuple[int, int], list[Record]]] = {}


def read(path: Path) -> list[Record]:
    """The valid records of a log, in file order; none when there is no such log.

    Bad lines are set aside in ``<log>.quarantine`` with one warning.  Never raises for what a log contains.
    """
    try:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if path in _parsed and _parsed[path][0] == stamp:
            return _parsed[path][1]
        records, bad = split_lines(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError:
        return []
    if bad:
        from tilegen.tune import logs

        kept = logs.quarantine(path)
        where = f"moved to {kept}" if kept else "ignored (the log cannot be written)"
        first = f"the first: {bad[0][1]}: {bad[0][0][:80]!r}"
        warnings.warn(f"{path}: {len(bad)} bad line(s) {where}; {first}", TuningLogWarning, stacklevel=2)
    _parsed[path] = (stamp, records)
    return records


def best(records: list[Record], task: str) -> Record | None:
    """The fastest of the records of `task` that no other one has beaten in a direct comparison."""
    fitting = [r for r in records if r.key.task == task]
    beaten = {r.supersedes for r in fitting}
    return min((r for r in fitting if r.id not in beaten), key=lambda r: r.seconds, default=None)


@dataclass(frozen=True)
class Host:
    """A CPU's folder name taken apart: ``x86_64-v4`` is an architecture and a model."""

    architecture: str
    model: str

    @classmethod
    def parse(cls, name: str) -> Host:
        """Take `name` apart."""
        architecture, _, model = name.partition("-")
        return cls(architecture, model)

    def distance(self, other: Host) -> int | None:
        """How unlike two devices of one architecture are: levels apart (``v4``, ``v3``), else 0 or 1; else None."""
        if self.architecture != other.architecture:
            return None
        levels = [re.fullmatch(r"v(\d+)", model) for model in (self.model, other.model)]
        if all(levels):
            return abs(int(levels[0][1]) - int(levels[1][1]))  # type: ignore[index]
        return int(self.model != other.model)


def neighbours(folder: Path, host: str) -> list[Path]:
    """The logs' folders of other devices of the same architecture, the nearest first."""
    me, found = Host.parse(host), []
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        far = me.distance(Host.parse(child.name))
        if child.is_dir() and child.name != host and far is not None:
            found.append((far, child))
    return [child for _, child in sorted(found)]


def others(folder: Path, host: str) -> list[Path]:
    """The logs' folders of all other devices; which of them are of an architecture stands in their records."""
    return [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name != host] if folder.is_dir() else []


def candidates(key: RecordKey, log_dir: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Where a record for `key` may be, in the order of lookup, each with its source."""
    user, shipped = log_dir or settings.log_dir(), settings.shipped_log_dir()
    yield "user", log_path(user, key.host, key.op)
    yield "shipped", log_path(shipped, key.host, key.op)
    for folder in (user, shipped):
        near = neighbours(folder, key.host) if not key.arch else others(folder, key.host)
        for child in near:
            yield "nearest", child / f"{key.op}.jsonl"


def _enough_cores(record: Record) -> bool:
    return bool(record.key.arch) or int(record.device.get("cores", cores())) >= cores()


def lookup(key: RecordKey, log_dir: Path | None = None) -> Record | None:
    """The record to build `key` with, or None: then the rule's default is used.

    Order: the user's log, the log shipped for this device, the log of the nearest device of the same architecture; for a GPU that
    of any other one of its architecture.  `Record.source` says which of them it was, `Record.key.host` which device.  A record of
    a machine with fewer cores is taken from the user's own log only: its tiles may be too few for the cores of this one, which the
    default's are not.
    """
    for source, path in candidates(key, log_dir):
        fitting = [r for r in read(path) if r.key.arch == key.arch and (source == "user" or _enough_cores(r))]
        found = best(fitting, key.task)
        if found is not None:
            return dataclasses.replace(found, source=source)
    return None
