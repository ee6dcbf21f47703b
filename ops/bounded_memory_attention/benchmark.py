"""How attention with bounded-memory control is measured, and what it must do at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work
from tilegen.ops.bounded_memory_attention import reference


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v, s and writes o.

    A position needs, when causal, half a row of a C by C tile four times (q k^T over D, its product with the weights into
    slots, the way back over N, and the product with v over E), and with "running" half a row once more for the sums of weights
    up to each position; then the products with the slots and its share of their sums (both D N and N E), about four operations a
    slot for the softmax and with a normaliser four for z.
    """
    positions, D, E, N = _sizes(sizes)
    tile = (config.chunk + 1) * (D + 2 * N + E) if config.causal else 0
    weights = (config.chunk + 1) * N if config.causal and config.normalizer == "running" else 0
    slots = (4 if config.normalizer == "none" else 8) * N
    return Work(positions * (tile + weights + 4 * N * (D + E) + slots), positions * (2 * D + 2 * E + N))


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v, s and do and writes dq, dk, dv, ds; slots and logits are computed again, so they do not count as traffic.

    The two linear attentions need five products each in the tile (forward ones again, then one for each operand) and one sum
    and one product each for every operand against the slots; the sums of weights of "running" are computed again, and
    their adjoint is another such sum.
    """
    positions, D, E, N = _sizes(sizes)
    tile = (config.chunk + 1) * ((3 * D + 2 * N) + (3 * N + 2 * E)) if config.causal else 0
    weights = 2 * (config.chunk + 1) * N if config.causal and config.normalizer == "running" else 0
    slots = (6 if config.normalizer == "none" else 12) * N
    return Work(positions * (tile + weights + 10 * N * (D + E) + slots), positions * (4 * D + 3 * E + 2 * N))


def _sizes(sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    return sizes["B"] * sizes["T"] * sizes["H"], sizes["D"], sizes["E"], sizes["N"]


def fla(config: Any) -> Callable[..., tuple[Any, ...]] | None:
    """``chunk_abc`` of flash-linear-attention: causal, with the running normaliser."""
    from fla.ops.abc import chunk_abc

    if not config.causal or config.normalizer != "running" or config.initial_state or config.return_state:
        return None
    return lambda q, k, v, s: chunk_abc(q, k, v, s)[:1]


BENCHMARK = Benchmark(
    mechanism="bounded_memory_attention",
    options=({}, {"normalizer": "fixed"}),
    sizes={"B": 2, "T": 1024, "H": 4, "D": 64, "E": 64, "N": 64},
    lengths=(256, 512, 1024, 2048),
    peer=reference.chunked,
    forward=forward,
    backward=backward,
    rivals={"fla": fla},
)
