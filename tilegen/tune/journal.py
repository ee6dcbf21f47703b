"""The diary of one search: every trial on disk before the next one starts, so that a killed search goes on where it was.

A journal belongs to one task on one device with one seed.  Unlike a record it is nobody else's business: failures are
in it too, which is how a candidate that crashed once is not tried again.  No TVM is imported here.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from tilegen.errors import RecordError
from tilegen.tune.logs import append_line, replace_file
from tilegen.tune.records import canonical

OK = "ok"

INVALID = ("wrong", "unstable", "outside", "crash")
"""Kinds that say something of the code, not of how busy a machine is."""

PRUNED = "pruned"
"""Left out by an estimate: it would not start on the device, or could not be fast."""

FREE = ("schedule", "same", PRUNED)
"""Kinds of outcomes that cost no trial where they are found out while building: nothing was measured."""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    `kind` is "ok", or why it was rejected: "schedule" (the primitives do not apply), "pruned" (by an estimate), "build", "crash", "timeout",
    "wrong" (differs from the reference), "unstable" (two runs differ), "outside" (wrote beyond its buffers).
    `seconds` and `spread` are the median and the distance between the quartiles of the repeats.
    """

    kind: str
    seconds: float = float("inf")
    spread: float = 0.0
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.kind == OK


@dataclass(frozen=True)
class Trial:
    """One numbered line of a journal; `decisions` are the indices of the chosen categories."""

    number: int
    decisions: tuple[int, ...]
    outcome: Outcome


class Journal:
    """The trials of a search, in order; holds the file's lock until closed.

    Parameters
    ----------
    path : the file; made when missing.
    space : anything JSON that identifies the search space and the code that gives it meaning.  A journal of another
        space is set aside as ``<path>.old``: its decisions would mean something else.

    Raises
    ------
    RecordError
        When another process is searching the same task.
    """

    def __init__(self, path: Path, space: Any, *, resume: bool = True) -> None:
        self.path, self.trials, self.ranked, self.verdict, self.ranked_after = path, [], None, None, 0
        self.known: dict[tuple[int, ...], Outcome] = {}
        self.codes: dict[str, tuple[int, ...]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(f"{path}.lock", timeout=1.0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RecordError(
                f"{path} is in use: another tuner searches the same kernel on this machine; wait until it ends"
            ) from None
        header = {"journal": 1, "space": space}
        lines = self._valid_lines()
        if lines and (not resume or lines[0] != header):
            os.replace(path, path.with_name(f"{path.name}.old"))
            lines = []
        if not lines:
            replace_file(path, [_seal(header)])
        for line in lines[1:]:
            self._take(line)

    trials: list[Trial]
    ranked: dict[str, Any] | None
    """What the last final ranking said, if no trial came after it."""
    verdict: dict[str, Any] | None
    """What the last final ranking said, whatever came after it."""
    ranked_after: int
    """The number of trials at that time."""

    def add(self, decisions: Sequence[int], outcome: Outcome, code: str = "") -> Trial:
        """Number a trial and put it on disk; `code` names what was measured, where other decisions may make the same."""
        trial = Trial(len(self.trials) + 1, tuple(decisions), outcome)
        finite = {k: v for k, v in asdict(outcome).items() if v != float("inf")}
        named = {"code": code} if code else {}
        self._write({"trial": trial.number, "decisions": list(trial.decisions), **finite, **named})
        return trial

    def skip(self, decisions: Sequence[int], outcome: Outcome) -> None:
        """Remember a point that is no trial (it cannot be built, or makes the code of another one), or a trial found wrong later."""
        self._write({"skipped": list(decisions), "kind": outcome.kind, "message": outcome.message})

    def rank(self, verdict: dict[str, Any]) -> None:
        """Note that the final ranking of the trials so far is done."""
        self._write({"ranked": len(self.trials), "verdict": verdict})

    def successes(self) -> list[Trial]:
        """The trials that passed every gate, the fastest first."""
        return sorted((t for t in self.trials if self.known[t.decisions].ok), key=lambda t: t.outcome.seconds)

    def failures(self) -> dict[str, int]:
        """How many trials were rejected, by kind."""
        kinds = [kind for t in self.trials if (kind := self.known[t.decisions].kind) != OK]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def pruned(self) -> int:
        """How many points were left out by an estimate, before anything was built."""
        return sum(outcome.kind == PRUNED for outcome in self.known.values())

    def history(self) -> list[float | None]:
        """Seconds of each trial in order, None where it was rejected."""
        return [t.outcome.seconds if self.known[t.decisions].ok else None for t in self.trials]

    def reasons(self) -> dict[str, str]:
        """The first message of each kind of rejection."""
        found = (self.known[t.decisions] for t in reversed(self.trials))
        return {outcome.kind: outcome.message for outcome in found if not outcome.ok}

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self.path, _seal(line))
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "trial" in line:
            fields = {k: line[k] for k in ("kind", "seconds", "spread", "message") if k in line}
            trial = Trial(len(self.trials) + 1, tuple(line["decisions"]), Outcome(**fields))
            self.trials.append(trial)
            self.codes.setdefault(line.get("code", ""), trial.decisions)
            self.known[trial.decisions] = trial.outcome
            self.ranked = None
        elif "skipped" in line:
            self.known[tuple(line["skipped"])] = Outcome(line["kind"], message=line["message"])
        elif "ranked" in line:
            self.ranked = self.verdict = line["verdict"]
            self.ranked_after = line["ranked"]

    def _valid_lines(self) -> list[dict[str, Any]]:
        """The undamaged lines; a line half written when the writer was killed is removed from the file."""
        if not self.path.exists():
            return []
        texts = self.path.read_bytes().decode("utf-8", errors="replace").split("\n")
        lines = [line for line in map(_open, texts) if line is not None]
        if len(lines) < len([t for t in texts if t]) or texts[-1]:
            replace_file(self.path, map(_seal, lines))
        return lines


def _seal(line: dict[str, Any]) -> str:
    text = canonical(line)
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _open(sealed: str) -> dict[str, Any] | None:
    crc, _, text = sealed.partition(" ")
    if crc != f"{zlib.crc32(text.encode()):08x}" or not text:
        return None
    line: dict[str, Any] = json.loads(text)
    return line
