"""How local attention is measured, and what it must do at least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work
from tilegen.ops.local_attention.reference import forward as pairs


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and writes o; a pair in the window takes two products of vectors and about five operations between."""
    rows, seen = sizes["B"] * sizes["T"] * sizes["H"], config.window + config.ahead + 1
    return Work(rows * seen * (2 * sizes["D"] + 2 * sizes["E"] + 5), rows * 2 * (sizes["D"] + sizes["E"]))


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v, o and do and writes dq, dk, dv; a pair takes five products of vectors: the logits again, dv, dp, dq, dk."""
    rows, seen = sizes["B"] * sizes["T"] * sizes["H"], config.window + config.ahead + 1
    return Work(rows * seen * (6 * sizes["D"] + 4 * sizes["E"] + 8), rows * 4 * (sizes["D"] + sizes["E"]))


BENCHMARK = Benchmark(
    mechanism="local_attention",
    options=({"window": 128}, {"window": 128, "kind": "relu2"}),
    sizes={"B": 2, "T": 2048, "H": 8, "D": 64, "E": 64},
    lengths=(512, 1024, 2048, 4096),
    peer=pairs,
    forward=forward,
    backward=backward,
)
