"""What runs in a measuring process that owns a GPU: the gates of `tilegen.tune.measure`, the same at the tuned sizes, then the clock.

Every call here may crash or hang the device; its owner ends the process then.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilegen.tune import measure as near
from tilegen.tune.device import driver
from tilegen.tune.device.memory import Rehearsal, Room, Stage, Started, sampled, stage_bytes
from tilegen.tune.gate import TF32, Array, dtype_of, limit_around

UNITS = 4.0
"""How many times `limit_around` a result at the tuned sizes may be from the default's: both have errors of their own."""

SPARE = 1 << 30
"""Bytes of the device that stages leave free."""

FLUSH = 2
"""Times the last-level cache that is written between samples."""


def setup() -> None:
    """Take the device before the first candidate's clock starts."""
    driver.start()


@functools.cache
def rehearsal(path: str) -> Rehearsal:
    """The rehearsal described in `path`."""
    return Rehearsal(path)


_stages: dict[str, Stage] = {}


def stage_at(path: str) -> Stage:
    """The stage described in `path`; as many are on the device as fit, those used last."""
    if path in _stages:
        _stages[path] = _stages.pop(path)
    else:
        # Candidates write results of their own beside those of the defaults.
        while _stages and driver.available() < SPARE + 2 * stage_bytes(path):
            _stages.pop(next(iter(_stages))).free()
        _stages[path] = Stage(path)
    return _stages[path]


class Timed:
    """A candidate at the tuned sizes, among the values of a stage.

    Parameters
    ----------
    names : the name on the stage of each of its arguments.
    written : those arguments that it writes, which get memory of their own.
    scratch : others that it writes, where not every element may be written: they are not compared.
    """

    def __init__(
        self, library: str, stage: str, names: Mapping[str, str], written: Sequence[str], scratch: Sequence[str]
    ) -> None:
        self.stage, self.names, self.written = stage_at(stage), names, written
        self.rooms = {name: self.stage.room(names[name]) for name in (*written, *scratch)}
        addresses = {name: self.stage.tensors[there].address for name, there in names.items()}
        addresses |= {name: room.address for name, room in self.rooms.items()}
        self.run = Started(library, addresses, self.stage.sizes)

    def rejected(self) -> near.Failure | None:
        """Run twice on poisoned results; why the candidate must not be recorded, or None."""
        images: list[list[Array]] = []
        for round_ in range(2):
            for room in self.rooms.values():
                room.poison((0xFF, 0x7F)[round_])
            self.run()
            driver.wait()
            spoiled = [name for name, room in self.rooms.items() if not room.intact()]
            if spoiled:
                return {"kind": "outside", "message": f"wrote outside of {', '.join(spoiled)}"}
            compared = [self.rooms[name] for name in self.written]
            images.append([driver.staging(1 + 2 * i + round_, room.size) for i, room in enumerate(compared)])
            for image, room in zip(images[-1], compared, strict=True):
                driver.download(image, room.address)
        for name, first, second in zip(self.written, *images, strict=True):
            if not near.same(first, second):
                return {"kind": "unstable", "message": f"{name}: two runs differ at the tuned sizes"}
            tensor = self.stage.tensors[self.names[name]]
            wrong = unlike(sampled(first, tensor.dtype), self.stage.expected(self.names[name]), tensor.dtype, self.stage.dtype)
            if wrong:
                return {"kind": "wrong", "message": f"{name}: {wrong}; shape {list(tensor.shape)}"}
        return None


def unlike(found: Array, expected: Array, dtype: str, io: str) -> str | None:
    """Why samples of two correct kernels could not be `found` and `expected`, or None.

    `io` is the operator's dtype: what is kept between its kernels in a wider one need not be more precise.
    """
    fine = np.isfinite(expected)
    if not np.isfinite(found[fine]).all():
        return "NaN or infinite at the tuned sizes where the default's result is not"
    exact = dtype_of(dtype).itemsize <= dtype_of(io).itemsize and not (io == TF32 and dtype == "float32")
    wide = dtype if exact else io
    limit = limit_around(expected[fine], wide)
    error = np.abs(found[fine] - expected[fine])
    peak, norm = float(error.max(initial=0.0)), float(np.linalg.norm(error))
    if peak > UNITS * limit.peak or norm > UNITS * limit.norm:
        return f"differs from the default's result at the tuned sizes by {peak:.3g} (limit {UNITS * limit.peak:.3g})"
    return None


@functools.cache
def _flush_room() -> Room:
    return Room(FLUSH * driver.l2_bytes())


def clocked(runs: Sequence[Timed], rounds: int) -> list[list[float]]:
    """Seconds of each candidate, once a round, all of them in turns; caches are flushed before each."""
    flush, pairs = _flush_room(), [[(driver.Event(), driver.Event()) for _ in range(rounds)] for _ in runs]
    for round_ in range(rounds):
        for step in range(len(runs)):
            # Each round begins with another candidate: none always follows the same one.
            i = (step + round_) % len(runs)
            begin, end = pairs[i][round_]
            flush.poison(round_ % 2)
            begin.record()
            runs[i].run()
            end.record()
    driver.wait()
    return [[end.seconds_since(begin) for begin, end in each] for each in pairs]


def check(library: str, number: int, checked: list[str]) -> dict[str, Any]:
    """Compare what an operator gives with a candidate in place of its kernel `number` with references.

    `checked` : descriptions of rehearsals, all of which must pass.  Returns ``{"kind": "ok"}``, or the kind and message of the rejection.
    """
    for path in checked:
        failure = rehearsal(path).rejected(library, number)
        if failure:
            return dict(failure)
    return {"kind": "ok"}


def measure(
    library: str,
    stage: str,
    names: dict[str, str],
    written: list[str],
    scratch: list[str],
    number: int,
    checked: list[str],
    repeats: int,
    hurry: float | None,
) -> dict[str, Any]:
    """Pass a candidate through the gates and time it.

    Parameters
    ----------
    library : its cubin.
    stage, names, written, scratch : see `Timed`.
    number, checked : see `check`; none: only the results at the tuned sizes are looked at.
    hurry : seconds; a candidate twice as slow as this in its first samples gets no more.

    Returns
    -------
    ``{"kind": "ok", "samples": [seconds]}``, or the kind and message of the rejection.
    """
    found = check(library, number, checked)
    if found["kind"] != "ok":
        return found
    candidate = Timed(library, stage, names, written, scratch)
    failure = candidate.rejected()
    if failure:
        return dict(failure)
    samples = clocked([candidate], 3)[0]
    if hurry is None or statistics.median(samples) <= 2 * hurry:
        samples = clocked([candidate], repeats)[0]
    candidate.run.close()
    return {"kind": "ok", "samples": samples}


def rank(
    libraries: list[str], stage: str, names: dict[str, str], written: list[str], scratch: list[str], rounds: int
) -> list[list[float]]:
    """Time several candidates in turns, so that a change of the device's clock hits all of them; samples of each."""
    candidates = [Timed(library, stage, names, written, scratch) for library in libraries]
    clocked(candidates, 2)
    samples = clocked(candidates, rounds)
    for candidate in candidates:
        candidate.run.close()
    return samples


def copy_bandwidth() -> float:
    """Bytes per second of copying on the device, each byte counted as read and as written."""
    size, best = 1 << 29, 0.0
    source, target = driver.allocate(size), driver.allocate(size)
    driver.fill(source, 1, size)
    for _ in range(5):
        begin, end = driver.Event(), driver.Event()
        begin.record()
        driver.copy(target, source, size)
        end.record()
        driver.wait()
        best = max(best, 2 * size / end.seconds_since(begin))
    driver.free(source)
    driver.free(target)
    return best
