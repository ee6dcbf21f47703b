"""How the multi-head damped EMA is measured, and what it must do at least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work
from tilegen.ops.ema.reference import convolution


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads x and writes y; an element advances N averages a direction (2 operations each) and sums them up (2 each)."""
    elements = math.prod(sizes[name] for name in "BTC")
    directions = 1 if config.causal else 2
    return Work((4 * sizes["N"] * directions + 2) * elements, 2 * elements)


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads x and dy and writes dx.

    An average is advanced again (2 operations), with its slope in q (2), and summed against dy twice (4, one product being w dy);
    the averages of dy that make dx take 4.
    """
    elements = math.prod(sizes[name] for name in "BTC")
    directions = 1 if config.causal else 2
    return Work((12 * sizes["N"] * directions + 4) * elements, 3 * elements)


BENCHMARK = Benchmark(
    mechanism="ema",
    options=({}, {"causal": False}),
    sizes={"B": 4, "T": 2048, "C": 512, "N": 16},
    lengths=(512, 1024, 2048, 4096, 8192),
    peer=convolution,
    forward=forward,
    backward=backward,
)
