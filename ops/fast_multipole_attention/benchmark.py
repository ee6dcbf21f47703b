"""How fast multipole attention is measured, and what it must do at least.  Summaries are means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tilegen.bench.spec import Benchmark, Work


def tiles(config: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Query tiles of one block with their key lists gathered by shifts and repeats, as one masked attention in PyTorch."""
    T, m, p = q.shape[1], config.block, config.rank
    levels = [level for level in range(1, config.levels + 1) if m << level < T]  # no group of the others is seen
    whole = m << len(levels)  # a pair of groups of the coarsest
    count = -(-T // whole) * whole
    q, k, v = (pad(x, (0, 0, 0, 0, 0, count - T)) for x in (q, k, v))
    blocks = torch.arange(count // m, device=q.device)
    offsets = (-1, 0) if config.causal else (-1, 0, 1)
    index = (blocks[:, None] + torch.tensor(offsets, device=q.device))[..., None] * m + torch.arange(m, device=q.device)
    index = index.flatten(1)[:, None]  # [nb, 1, near]
    rows = (blocks[:, None] * m + torch.arange(m, device=q.device))[..., None]
    masks = [(index >= 0) & (index < T) & ((index <= rows) if config.causal else rows >= 0)]
    biases = [torch.zeros_like(index, dtype=q.dtype)]
    lists = [[_shifted(x.unflatten(1, (-1, m)), offsets, 1)] for x in (k, v)]
    for level in levels:
        w = config.width(level)
        part = torch.arange(count // w * p, device=q.device) * (w // p)
        tokens = (T - part).clamp(1, w // p).to(q.dtype)
        sides = (-1,) if config.causal else (-1, 1)
        for found, x in zip(lists, (k, v), strict=True):
            means = x.unflatten(1, (-1, w // p)).sum(2) / tokens[:, None, None]
            found.append(_shifted(means.unflatten(1, (-1, 2 * p)), sides, 1 << level))
        pair = blocks // (1 << level)
        slots = (pair[:, None] + torch.tensor(sides, device=q.device))[..., None] * 2 * p + torch.arange(2 * p, device=q.device)
        slots = slots.flatten(1)
        group, own = slots.div(p, rounding_mode="floor"), (blocks // (1 << (level - 1)))[:, None]
        there = (slots >= 0) & (slots * (w // p) < T) & ((group - own).abs() >= 2)
        masks.append(there[:, None].expand(-1, m, -1))
        biases.append(((T - group * w).clamp(1, w).to(q.dtype) / p).log()[:, None])
    biases = biases if config.count_bias else [torch.zeros_like(bias) for bias in biases]
    mask = torch.cat([torch.where(a, b, -torch.inf) for a, b in zip(masks, biases, strict=True)], -1)
    mask[blocks * m >= T] = 0.0  # rows that do not exist: any finite result will do
    keys, values = (torch.cat(found, 2).movedim(3, 2) for found in lists)  # [B, nb, H, N, D]
    queries = q.unflatten(1, (-1, m)).movedim(3, 2)
    mask = mask.expand(q.shape[0], *mask.shape).flatten(0, 1)[:, None]
    # Four axes: torch.compile does not take more.
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))
    y = scaled_dot_product_attention(queries, keys, values, mask, scale=config.scale)
    return (y.unflatten(0, (q.shape[0], -1)).movedim(2, 3).flatten(1, 2)[:, :T],)


def _shifted(x: Tensor, offsets: tuple[int, ...], repeat: int) -> Tensor:
    """[B, n, s, H, D] -> [B, n repeat, s len(offsets), H, D]: the neighbours of every entry, zeros where there is none."""
    n = x.shape[1]
    moved = [pad(x, (0, 0, 0, 0, 0, 0, 1, 1))[:, 1 + by : 1 + by + n] for by in offsets]
    return torch.cat(moved, 2).repeat_interleave(repeat, 1)


def seen(config: Any) -> float:
    """Keys that a query far from both ends sees."""
    near = 1.5 * config.block + 0.5 if config.causal else 3 * config.block
    return near + config.levels * config.rank * (1.5 if config.causal else 3)


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and writes y.

    A query needs with every key it sees two products over D and 4 operations of the softmax; a token enters two sums, and
    learned summaries 2 p products a level in each.
    """
    rows, D = sizes["B"] * sizes["T"] * sizes["H"], sizes["D"]
    pooling = 4 * config.rank * config.levels * D if config.learned else 2 * D
    return Work(rows * (seen(config) * (4 * D + 4) + pooling), 4 * rows * D)


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and dy and writes dq, dk, dv; the weights are computed again, so they do not count as traffic.

    Five products over D and 6 operations with every key; the adjoints of the sums cost what the sums do, twice when learned.
    """
    rows, D = sizes["B"] * sizes["T"] * sizes["H"], sizes["D"]
    pooling = 8 * config.rank * config.levels * D if config.learned else 2 * D
    return Work(rows * (seen(config) * (10 * D + 6) + pooling), 7 * rows * D)


BENCHMARK = Benchmark(
    mechanism="fast_multipole_attention",
    options=({}, {"causal": False}),
    sizes={"B": 1, "T": 2048, "H": 8, "D": 64},
    lengths=(512, 1024, 2048, 4096, 8192),
    peer=tiles,
    forward=forward,
    backward=backward,
)
