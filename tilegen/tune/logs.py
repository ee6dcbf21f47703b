"""Writing tuning logs: a lock, one writer, whole lines, and nothing lost when the machine stops in between."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from tilegen.errors import RecordError
from tilegen.tune.records import Record, encode, read, split_lines

WAIT = 30.0
"""Seconds to wait for another writer, which holds the lock for milliseconds."""


@contextlib.contextmanager
def locked(path: Path, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of the log `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{path}.lock", timeout=wait):
            yield
    except filelock.Timeout:
        raise RecordError(
            f"{path} is being written by another process and did not come free in {wait:.0f} s; "
            f"wait for that one, or remove {path}.lock if none is running"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until the disk has it; the caller holds the lock.

    A line that a killed writer left half written is closed first, so that it spoils itself only.
    """
    new = not path.exists()
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def replace_file(path: Path, lines: Iterable[str]) -> None:
    """Give `path` new contents at once: a reader sees all of the old or all of the new."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def append(path: Path, record: Record) -> None:
    """Add `record` to the log `path`, unless it is there already."""
    with locked(path):
        known = {r.id for r in split_lines(_text(path))[0]}
        if record.id not in known:
            append_line(path, encode(record))


def quarantine(path: Path) -> Path | None:
    """Move the bad lines of a log to ``<log>.quarantine``; returns that path, or None when nothing can be written."""
    aside = path.with_name(f"{path.name}.quarantine")
    try:
        with locked(path):
            good, bad = split_lines(_text(path))
            if bad:
                with open(aside, "a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line, _ in bad)
                    file.flush()
                    os.fsync(file.fileno())
                replace_file(path, map(encode, good))
    except (OSError, RecordError):
        return None
    return aside


@dataclass(frozen=True)
class Verdict:
    """What `verify` found in one log."""

    path: Path
    records: int
    bad: list[tuple[int, str]]
    """Line number (from 1) and reason."""


def log_files(where: Path) -> list[Path]:
    """The logs in a folder, or the one log given."""
    if not where.exists():
        raise RecordError(f"{where} does not exist; give a log (*.jsonl) or a folder of logs")
    return sorted(p for p in where.glob("*/*.jsonl")) if where.is_dir() else [where]


def verify(where: Path) -> list[Verdict]:
    """Check every line of a log, or of all logs in a folder, without changing anything."""
    verdicts = []
    for path in log_files(where):
        good, bad = 0, []
        for number, line in enumerate(_text(path).split("\n"), 1):
            ok, wrong = split_lines(line)
            good += len(ok)
            bad += [(number, reason) for _, reason in wrong]
        verdicts.append(Verdict(path, good, bad))
    return verdicts


def merge(sources: Iterable[Path], into: Path) -> int:
    """Copy the records of logs or folders of logs into the folder `into`; returns how many were new there.

    A record goes to the log of its own device and op, wherever it came from.  Bad lines of a source stay behind.
    """
    added = 0
    incoming: dict[Path, list[Record]] = {}
    for source in sources:
        for path in log_files(source):
            for record in split_lines(_text(path))[0]:
                incoming.setdefault(into / record.key.host / f"{record.key.op}.jsonl", []).append(record)
    for path, records in incoming.items():
        read(path)  # quarantines what is bad in the log we add to
        with locked(path):
            present = {r.id: r for r in split_lines(_text(path))[0]}
            before = len(present)
            present.update((r.id, r) for r in records)
            if len(present) > before:
                replace_file(path, map(encode, present.values()))
            added += len(present) - before
    return added


def prune(where: Path, keep: int = 1) -> int:
    """Keep the `keep` best records per key in a log or folder of logs; returns how many were removed.

    A record that another one has beaten in a direct comparison ranks behind all that were not beaten.
    """
    if keep < 1:
        raise RecordError(f"keep is {keep}, must be at least 1: a log without records is better deleted")
    removed = 0
    for path in log_files(where):
        read(path)
        with locked(path):
            records = split_lines(_text(path))[0]
            beaten = {r.supersedes for r in records}
            kept = []
            for key in dict.fromkeys(r.key for r in records):
                ranked = sorted((r for r in records if r.key == key), key=lambda r: (r.id in beaten, r.seconds))
                kept += ranked[:keep]
            if len(kept) < len(records):
                replace_file(path, map(encode, kept))
            removed += len(records) - len(kept)
    return removed


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
