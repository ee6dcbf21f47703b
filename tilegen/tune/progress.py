"""What a search shows while it runs: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from tilegen.tune.engine import UNLIMITED
from tilegen.tune.journal import Trial

PLAIN_SECONDS = 10.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows a search on `console` (standard error unless given).  A context manager.

    A rejected candidate is counted, not shouted about: the space is allowed to contain some.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        self._printed = 0.0
        self._best = float("inf")
        self._done = self._trials = self._new = self._rejected = self._traffic = 0
        self._flops: float | None = None
        self._reset("")

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(escape(text))

    def stage(self, text: str, quietly: bool = True) -> None:
        """Say what is going on; `quietly`: on a live line only."""
        self._stage = text
        self._show(quietly)

    def begin(self, name: str, done: int, trials: int, traffic: int, flops: float | None, bandwidth: float) -> None:
        """A search starts: its task, the trials in its journal, the trials wanted, and what a call moves and computes."""
        self._reset(name)
        self._done, self._trials = done, trials
        self._traffic, self._flops, self._bandwidth = traffic, flops, bandwidth
        if done:
            self.say(f"{name}: going on after trial {done}")

    def best(self, seconds: float) -> None:
        """A result known from before."""
        self._best = min(self._best, seconds)

    def trial(self, trial: Trial) -> None:
        """A trial was written to the journal."""
        self._done, self._new = trial.number, self._new + 1
        if trial.outcome.ok:
            self._best = min(self._best, trial.outcome.seconds)
        else:
            self._rejected += 1
        self._show()

    def line(self) -> str:
        """The state of the search in one line."""
        if not self._name:
            return self._stage
        of = f"/{self._trials}" if self._trials < UNLIMITED else ""
        elapsed = max(time.monotonic() - self._begun, 1e-9)
        parts = [f"{self._name}: trial {self._done}{of}", f"{self._new / elapsed:.1f} trials/s"]
        if self._best < float("inf"):
            parts += [f"best {duration(self._best)}", *self._rates()]
        if self._rejected:
            parts.append(f"{self._rejected} rejected")
        if self._stage:
            parts.append(self._stage)
        return ", ".join(parts)

    def _rates(self) -> list[str]:
        rate = self._traffic / self._best
        rates = [f"{self._flops / self._best / 1e9:.1f} GFLOP/s"] if self._flops else []
        return [*rates, f"{rate / 1e9:.1f} GB/s ({100 * rate / self._bandwidth:.0f} % of copying)"]

    def _reset(self, name: str) -> None:
        self._name, self._begun, self._best, self._stage = name, time.monotonic(), float("inf"), ""
        self._done = self._trials = self._new = self._rejected = self._traffic = 0
        self._flops, self._bandwidth = None, 1.0

    def _show(self, quietly: bool = False) -> None:
        if self._live:
            self._live.update(Text(self.line()))
        elif not quietly and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.say(self.line())


class Silent(Progress):
    """Shows nothing."""

    def say(self, text: str) -> None:
        pass

    def _show(self, quietly: bool = False) -> None:
        pass

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: "1.234 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
