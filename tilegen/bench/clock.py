"""Seconds of a call: contenders take turns, so that a disturbance of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]

SAMPLE = 0.02
"""Seconds that one sample should last at least; shorter calls are repeated within it."""

LARGEST_COPY = 256 << 20
"""Bytes of the tensor whose copy measures memory: several times any last-level cache."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over the samples, and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        """Summarise at least two samples."""
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))


def compare(contenders: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Time all contenders, `repeats` samples each, one sample of each in turn.

    Every call is made twice beforehand: compilation and first touches are not measured.
    """
    loops = {name: _loops(call, device) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            samples[name].append(_sample(call, loops[name], device))
    return {name: Timing.of(values) for name, values in samples.items()}


def copy_bandwidth(device: torch.device, repeats: int = 9) -> float:
    """Bytes per second of copying one large tensor, each byte counted as read and as written."""
    source = torch.ones(LARGEST_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * LARGEST_COPY / compare({"copy": lambda: target.copy_(source)}, repeats, device)["copy"].median


def _loops(call: Call, device: torch.device) -> int:
    """How many calls fill a sample."""
    for _ in range(2):
        call()
    return max(1, round(SAMPLE / _sample(call, 1, device)))


def _sample(call: Call, loops: int, device: torch.device) -> float:
    """Mean seconds of `loops` calls."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(loops):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / loops
    begin = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - begin) / loops
