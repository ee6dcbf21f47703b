"""What runs in a measuring process on the CPU: the gates, then the clock.

It loads compiled candidates with tvm-ffi and TVM's small runtime library only, so that a process that died is back in a
third of a second.  Every call here may crash; its owner expects that.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tilegen.runtime.library import installed_runtime
from tilegen.runtime.tensors import library_of
from tilegen.tune.case import Buffer, Case
from tilegen.tune.gate import complaint

SAMPLE = 3e-4
"""Seconds that one sample lasts at least; shorter kernels are called several times within it."""

Failure = dict[str, str]


def setup() -> None:
    """Load TVM's runtime once."""
    import tvm_ffi  # noqa: F401  # the runtime library needs its symbols

    path = installed_runtime()
    if path is not None:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@functools.lru_cache(maxsize=4)
def load_case(folder: str) -> Case:
    """The case in `folder`, read once."""
    return Case.load(Path(folder))


@functools.lru_cache(maxsize=16)
def accepted(folder: str) -> dict[str, Any]:
    """Outputs of a case that passed, as bytes: schedules that compute in the same order give the same bits again."""
    return {}


@functools.lru_cache(maxsize=1)
def _flush_buffer() -> Any:
    """Twice the last-level cache: writing it drives everything else out."""
    return np.zeros(2 * last_level_cache(), np.uint8)


def last_level_cache() -> int:
    """Bytes of the last-level cache, between 8 and 128 MiB; 32 MiB when the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0) if not text.isdigit() else int(text))
    return min(max(sizes[1:] or sizes), 128 << 20)


def flush() -> None:
    """Drive the arguments out of the caches, as in a model where other layers run in between."""
    _flush_buffer()[...] += np.uint8(1)


def same(a: Any, b: Any) -> bool:
    """Whether two contiguous arrays of one shape and dtype have the same bits."""
    return (
        ctypes.CDLL(None).memcmp(ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(b.ctypes.data), ctypes.c_size_t(a.nbytes)) == 0
    )


class Loaded:
    """A compiled candidate with buffers to run it on."""

    def __init__(self, library: str, symbol: str, folder: str) -> None:
        self.folder, self.case, self.accepted = folder, load_case(folder), accepted(folder)
        self.buffers = self.case.buffers()
        self.open(library, symbol)

    def open(self, library: str, symbol: str) -> None:
        """Load the function and form its arguments."""
        import tvm_ffi

        self.function = tvm_ffi.load_module(library)[symbol]
        self.arguments = [library_of([b.array]).passed(b.array) for b in self.buffers]  # type: ignore[union-attr]

    def __call__(self) -> None:
        self.function(*self.arguments)

    def send(self) -> None:
        """Bring the buffers to the device; here they are there."""

    def fetch(self) -> None:
        """Bring the buffers back."""

    def outputs(self) -> list[Buffer]:
        """The buffers that the kernel writes."""
        return [b for b in self.buffers if b.argument.output]

    def rejected(self) -> Failure | None:
        """Run twice on poisoned outputs; why the candidate must not be recorded, or None."""
        runs = []
        for round_ in range(2):
            for buffer in self.outputs():
                buffer.poison(round_)
            self.send()
            self()
            self.fetch()
            spoiled = [b.argument.name for b in self.buffers if not b.intact()]
            if spoiled:
                return {"kind": "outside", "message": f"wrote outside of {', '.join(spoiled)}"}
            for buffer in self.buffers:
                name = buffer.argument.name
                if not buffer.argument.output and not same(buffer.array, self.case.inputs[name]):
                    return {"kind": "outside", "message": f"changed its input {name}"}
            runs.append([b.bytes.copy() for b in self.outputs()])
        for buffer, first, second in zip(self.outputs(), *runs, strict=True):
            name = buffer.argument.name
            if not same(first, second):
                return {"kind": "unstable", "message": f"{name}: two runs differ in {int((first != second).sum())} bytes"}
            if name in self.accepted and same(first, self.accepted[name]):
                continue
            wrong = complaint(name, buffer.array, self.case.references[name], self.case.limits[name])
            if wrong:
                return {"kind": "wrong", "message": f"{wrong}; shape {list(buffer.array.shape)}"}
            self.accepted[name] = first
        return None

    def loops(self) -> int:
        """How many calls fill a sample, after a warm-up."""
        for _ in range(2):
            begin = time.perf_counter()
            self()
            once = time.perf_counter() - begin
        return max(1, min(1000, int(SAMPLE / max(once, 1e-7))))

    def sample(self, loops: int) -> float:
        """Mean seconds of `loops` calls after a cache flush."""
        flush()
        begin = time.perf_counter()
        for _ in range(loops):
            self()
        return (time.perf_counter() - begin) / loops


def measure(
    library: str,
    symbol: str,
    timed: str,
    checked: list[str],
    repeats: int,
    hurry: float | None,
    load: type[Loaded] = Loaded,
) -> dict[str, Any]:
    """Pass a candidate through the gates and time it.

    Parameters
    ----------
    library, symbol : the shared library and the function in it.
    timed, checked : folders of cases; all of `checked` must pass, `timed` is what the clock sees.
    hurry : seconds; a candidate twice as slow as this in its first sample gets no more than three.

    Returns
    -------
    ``{"kind": "ok", "samples": [seconds]}``, or the kind and message of the rejection.
    """
    loaded = {folder: load(library, symbol, folder) for folder in {*checked, timed}}
    for folder in checked:
        failure = loaded[folder].rejected()
        if failure:
            return dict(failure)
    candidate = loaded[timed]
    loops = candidate.loops()
    samples = [candidate.sample(loops)]
    if hurry is not None and samples[0] > 2 * hurry:
        repeats = min(repeats, 3)
    samples += [candidate.sample(loops) for _ in range(repeats - 1)]
    return {"kind": "ok", "samples": samples}


def rank(
    libraries: list[str], symbol: str, timed: str, rounds: int, seconds: float, load: type[Loaded] = Loaded
) -> list[list[float]]:
    """Time several candidates in turns, so that a disturbance of the machine hits all of them.

    Returns the samples of each candidate; sample i of all candidates belongs to one round.  At least three rounds, then
    as many of `rounds` as fit into `seconds`.
    """
    end = time.monotonic() + seconds
    candidates = [load(library, symbol, timed) for library in libraries]
    loops = [candidate.loops() for candidate in candidates]
    samples: list[list[float]] = [[] for _ in candidates]
    for round_ in range(rounds):
        if round_ >= 3 and time.monotonic() >= end:
            break
        for step in range(len(candidates)):
            # Each round begins with another candidate: none always follows the same one.
            i = (step + round_) % len(candidates)
            samples[i].append(candidates[i].sample(loops[i]))
    return samples


def outputs(library: str, symbol: str, case: str, into: str, load: type[Loaded] = Loaded) -> None:
    """Run the unscheduled kernel and leave its outputs in the folder `into`, one file of bytes per output."""
    plain = load(library, symbol, case)
    for buffer in plain.outputs():
        buffer.poison(0)
    plain.send()
    plain()
    plain.fetch()
    for buffer in plain.outputs():
        buffer.bytes.tofile(Path(into) / f"{buffer.argument.name}.plain")


def copy_bandwidth() -> float:
    """Bytes per second of copying with all cores, each byte counted as read and as written."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, 16)  # enough to fill any memory bus, and 4 GiB at most
    size = last_level_cache()
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(5):
            begin = time.perf_counter()
            list(threads.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best = max(best, 2 * size * cores / (time.perf_counter() - begin))
    return best
