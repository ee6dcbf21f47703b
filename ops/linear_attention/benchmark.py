"""How linear attention is measured, and what it must do at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work
from tilegen.ops.linear_attention import reference


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and writes o.

    A position needs, when causal, half a row of a C by C tile twice (q k^T over D and its product with v over E), one
    product with the state and one share of the state's own sum (both D E), and the scale; normalisation adds the row sums.
    """
    positions, D, E = sizes["B"] * sizes["T"] * sizes["H"], sizes["D"], sizes["E"]
    tile = (config.chunk + 1) * (D + E) if config.causal else 0
    total = (config.chunk + 1) // 2 + 3 * D if config.normalize else 0
    return Work(positions * (tile + 4 * D * E + E + total), 2 * positions * (D + E))


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and do and writes dq, dk, dv; states are computed again, so they do not count as traffic.

    When causal the tile is five products (q k^T and do v^T again, then dq, dk and dv); the states and their adjoints are one
    sum and one product each for dq, dk and dv.
    """
    positions, D, E = sizes["B"] * sizes["T"] * sizes["H"], sizes["D"], sizes["E"]
    tile = (config.chunk + 1) * (3 * D + 2 * E) if config.causal else 0
    total = 3 * ((config.chunk + 1) // 2 + 3 * D) if config.normalize else 0
    return Work(positions * (tile + 10 * D * E + E + total), positions * (4 * D + 3 * E))


def fla(config: Any) -> Callable[..., tuple[Any, ...]] | None:
    """``chunk_linear_attn`` of flash-linear-attention: causal, without decay."""
    from fla.ops.linear_attn import chunk_linear_attn

    if not config.causal or config.decay != "none" or config.normalize or config.initial_state or config.return_state:
        return None
    return lambda q, k, v: chunk_linear_attn(q, k, v, scale=config.scale, normalize=False)[:1]


BENCHMARK = Benchmark(
    mechanism="linear_attention",
    options=({}, {"causal": False}),
    sizes={"B": 2, "T": 2048, "H": 8, "D": 64, "E": 64},
    lengths=(512, 1024, 2048, 4096, 8192),
    peer=reference.chunked,
    forward=forward,
    backward=backward,
    rivals={"fla": fla},
)
