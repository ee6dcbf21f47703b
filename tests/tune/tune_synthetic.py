"""A search without a compiler: a product of decisions, a cost that is a formula, measuring that takes a millisecond.

Run as a program it searches until killed or done: ``python synthetic.py JOURNAL MEASURED TRIALS``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tilegen.tune.engine import Candidate, explore
from tilegen.tune.journal import Journal, Outcome, Trial

SIZES = (12, 12, 12)


def cost(decisions: Sequence[int]) -> float:
    return 1e-3 + 1e-5 * sum((d - 3) ** 2 for d in decisions)


class RandomProposer:
    """Unseen points in a random order that depends on the seed only."""

    def __init__(self, sizes: Sequence[int] = SIZES, seed: int = 0) -> None:
        self.sizes, self.random, self.seen = sizes, random.Random(seed), set[tuple[int, ...]]()

    def restore(self, trials: Sequence[Trial]) -> None:
        self.seen |= {t.decisions for t in trials}

    def propose(self, count: int) -> list[Candidate]:
        total, found = 1, []
        for size in self.sizes:
            total *= size
        while len(found) < count and len(self.seen) < total:
            point = tuple(self.random.randrange(n) for n in self.sizes)
            if point not in self.seen:
                self.seen.add(point)
                found.append(Candidate(point))
        return found

    def learn(self, results: Sequence[tuple[Candidate, Outcome]]) -> None:
        pass


class FakeEvaluator:
    """Every seventh point crashes; each measurement is also noted in a file of its own, before it is reported."""

    def __init__(self, measured: Path, seconds: float = 1e-3) -> None:
        self.measured, self.seconds = measured, seconds

    def evaluate(self, batch: Sequence[Candidate], deadline: float) -> Iterator[tuple[Candidate, Outcome]]:
        for candidate in batch:
            if time.monotonic() >= deadline:
                return
            time.sleep(self.seconds)
            with open(self.measured, "ab", buffering=0) as file:
                file.write(f"{candidate.decisions}\n".encode())
            if sum(candidate.decisions) % 7 == 6:
                yield candidate, Outcome("crash", message="signal 11")
            else:
                yield candidate, Outcome("ok", cost(candidate.decisions), 1e-6)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it otherwise
    print(os.getpid(), flush=True)
    path, measured, trials, seconds, most = sys.argv[1:]
    with Journal(Path(path), list(SIZES)) as journal:
        evaluator = FakeEvaluator(Path(measured), float(seconds))
        life = min(int(trials), len(journal.trials) + int(most))
        why = explore(RandomProposer(seed=len(journal.trials)), evaluator, journal, trials=life)
        if life < int(trials):
            time.sleep(3600)  # until it is killed, however late that comes
    print(why, flush=True)
