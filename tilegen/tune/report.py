"""What a tuning call found, kernel by kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from tilegen.tune.progress import duration

TIME_UP = "the time was up; the same command goes on with it"
"""Why a kernel was not searched."""

STOPPED = {
    "trials": "all trials done",
    "time": "time is up",
    "exhausted": "whole space searched",
    "failing": "stopped: a whole batch was rejected",
    "settled": "no better one for long",
    "small": "too little of the operator's time",
    "known": "nothing left to do",
}


@dataclass(frozen=True)
class SearchResult:
    """The search of one kernel.

    Parameters
    ----------
    seconds, spread : the winner's median and the distance between its quartiles, from the final ranking.
    default_seconds : the same median for the rule's default; None when the default is not valid.
    before_seconds : the same for what was used until now (a record, else the default); None when neither is valid.
    decisions : the winner's.
    stopped : why the search ended, a key of `STOPPED`.
    rejected : how many candidates were rejected, by kind.
    correlation : the model's rank correlation, see `MetaScheduleProposer.rank_correlation`.
    history : seconds of each trial in order, None where it was rejected.
    reasons : the first message of each kind of rejection.
    pruned : how many candidates were left out before they were built, since they would not start on the device or could not be fast.
    traffic, flops : bytes that a call moves at least, and its operations; None or 0 when unknown.
    bandwidth : bytes per second of copying on the device; 0 when unknown.
    """

    name: str
    trials: int
    space: int
    seconds: float
    spread: float
    default_seconds: float | None
    before_seconds: float | None
    decisions: list[int]
    stopped: str
    rejected: dict[str, int]
    correlation: float | None
    record: str | None
    log: Path | None
    history: list[float | None] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    pruned: int = 0
    traffic: int = 0
    flops: float | None = None
    bandwidth: float = 0.0

    @property
    def best_so_far(self) -> list[float]:
        """The fastest of the trials up to each of them; infinite before the first valid one."""
        found = accumulate((s if s is not None else math.inf for s in self.history), min)
        return list(found)

    @property
    def random_seconds(self) -> float | None:
        """What random search is expected to have found when this search had its best: the least of as many draws from the measured.

        The measured candidates are better than the average of the space, so this flatters random search.
        """
        valid = sorted(s for s in self.history if s is not None)
        if not valid:
            return None
        draws = self.best_so_far.index(valid[0]) + 1
        share = [((len(valid) - i) / len(valid)) ** draws for i in range(len(valid) + 1)]
        return sum(s * (share[i] - share[i + 1]) for i, s in enumerate(valid))

    @property
    def gain(self) -> float | None:
        """How many times faster than the default."""
        return self.default_seconds / self.seconds if self.default_seconds else None

    def lines(self) -> list[str]:
        """The result for people."""
        gain = f", {self.gain:.2f} times as fast as the default ({duration(self.default_seconds or 0)})" if self.gain else ""
        why = STOPPED[self.stopped]
        lines = [f"{self.name}: {duration(self.seconds)} (spread {duration(self.spread)}){gain}"]
        share = sum(self.rejected.values()) / max(self.trials, 1)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.rejected.items())
        rejected = f"; rejected {100 * share:.0f} % ({kinds})" if kinds else ""
        model = f"; the model's rank correlation {self.correlation:.2f}" if self.correlation is not None else ""
        pruned = f"; {self.pruned} pruned unbuilt" if self.pruned else ""
        lines.append(f"  {self.trials} of {self.space} candidates tried ({why}){pruned}{rejected}{model}")
        if self.random_seconds is not None:
            found = min(s for s in self.history if s is not None)
            at = self.best_so_far.index(found) + 1
            lines.append(
                f"  best at trial {at} ({duration(found)}); random search would have had {duration(self.random_seconds)} by then"
            )
        if self.record:
            lines.append(f"  record {self.record} {'is in' if self.stopped == 'known' else 'written to'} {self.log}")
        else:
            lines.append("  nothing written: what was used before is as good")
        return lines


@dataclass(frozen=True)
class TuneReport:
    """All searches of one tuning call and how long it took."""

    results: Sequence[SearchResult]
    elapsed: float
    skipped: Sequence[tuple[str, str]] = field(default=())
    """Kernels or operators that were not searched, each with the reason."""
    device: str = "this machine"
    bandwidth: float = 0.0
    """Bytes per second of copying there."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Trials of this call that each device measured; empty where there is only this machine."""

    def lines(self) -> list[str]:
        """The report for people; the last line says what was gained, in one sentence to paste."""
        lines = [line for result in self.results for line in result.lines()]
        lines += [f"{name}: not searched: {reason}" for name, reason in self.skipped]
        tried = sum(r.trials for r in self.results)
        if failed := sum(sum(r.rejected.values()) for r in self.results):
            lines.append(f"rejected: {failed} of {tried} candidates ({100 * failed / tried:.1f} %)")
        if len(self.devices) > 1:
            lines.append("measured: " + ", ".join(f"{count} on {name}" for name, count in self.devices.items()))
        if pruned := sum(r.pruned for r in self.results):
            lines.append(f"pruned before they were built: {pruned} candidates")
        both = [(r.default_seconds, r.seconds) for r in self.results if r.default_seconds]
        if both:
            before, after = sum(b for b, _ in both), sum(a for _, a in both)
            written = sum(r.record is not None and r.stopped != "known" for r in self.results)
            trials = sum(r.trials for r in self.results if r.stopped != "known")
            lines.append(
                f"{len(both)} kernel(s): {duration(before)} untuned, {duration(after)} tuned, "
                f"{before / after:.2f} times as fast; {trials} trials in {self.elapsed:.0f} s, {written} record(s) written"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        results = [
            {**dataclasses.asdict(r), "log": str(r.log) if r.log else None, "gain": r.gain, "random_seconds": r.random_seconds}
            for r in self.results
        ]
        return {"results": results, "elapsed": self.elapsed, "skipped": list(self.skipped), "devices": dict(self.devices)}
