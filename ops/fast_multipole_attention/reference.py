"""Fast multipole attention as it is defined: a dense softmax over all tokens and all summaries, masked by the lists.

Computes in the dtype of its arguments and takes O(T^2); cast to float64 for a reference.  The options are those of `Config`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def forward(config: Any, q: Tensor, k: Tensor, v: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k`, `v` [B, T, H, D] -> (y [B, T, H, D],); `rest` holds wk1, bk1, wv1, ... of learned summaries."""
    T, m = q.shape[1], config.block
    i, j = (torch.arange(T, device=q.device).unsqueeze(dim) for dim in (1, 0))
    distance = i // m - j // m
    sees = (distance <= 1) & (j <= i) if config.causal else distance.abs() <= 1
    keys, values, mask, bias = [k], [v], [sees], [torch.zeros(T, dtype=q.dtype, device=q.device)]
    for level in range(1, config.levels + 1):
        w = config.width(level)
        if config.learned:
            keys.append(_weighted(k, rest[f"wk{level}"], rest[f"bk{level}"]))
            values.append(_weighted(v, rest[f"wv{level}"], rest[f"bv{level}"]))
        else:
            keys.append(_means(config, k, w))
            values.append(_means(config, v, w))
        groups = -(-T // w)
        g = torch.arange(groups, device=q.device)
        listed = (_listed(config, i // w, g) & ~_next_to(i // w, g)).repeat_interleave(config.rank, 1)
        if not config.learned:
            listed = listed & (torch.arange(groups * config.rank, device=q.device) * (w // config.rank) < T)
        mask.append(listed)
        tokens = (T - g * w).clamp(max=w).to(q.dtype)
        bias.append((tokens / config.rank).log().repeat_interleave(config.rank))
    logits = torch.einsum("bihd,bjhd->bhij", q, torch.cat(keys, 1)) * (q.shape[-1] ** -0.5 if config.scale is None else config.scale)
    logits = logits + torch.cat(bias) if config.count_bias else logits
    logits = logits.masked_fill(~torch.cat(mask, 1), -math.inf)
    rows = torch.cat(values, 1)
    if config.phantom_keys:
        extra = _phantoms(config, T, q)
        logits = torch.cat([logits, extra.expand(*logits.shape[:2], *extra.shape)], 3)
        rows = torch.cat([rows, rows.new_zeros(rows.shape[0], extra.shape[1], *rows.shape[2:])], 1)
    return (torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), rows),)


def _listed(config: Any, own: Tensor, g: Tensor) -> Tensor:
    """Whether group g is a child of a pair next to the query's."""
    apart = own // 2 - g // 2
    return apart == 1 if config.causal else apart.abs() == 1


def _next_to(own: Tensor, g: Tensor) -> Tensor:
    return (own - g).abs() <= 1


def _weighted(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """[B, T, H, D] -> [B, groups p, H, D]: a depthwise convolution whose stride is its width, zeros beyond T."""
    groups, w = -(-x.shape[1] // W.shape[2]), W.shape[2]
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, groups * w - x.shape[1])).unflatten(1, (groups, w))
    return (torch.einsum("dpu,bguhd->bgphd", W, padded) + b.T[:, None]).flatten(1, 2)


def _means(config: Any, x: Tensor, w: int) -> Tensor:
    """[B, T, H, D] -> [B, groups p, H, D]: means over the tokens that exist of every part (0 where there is none)."""
    T, n = x.shape[1], w // config.rank
    parts = -(-T // w) * config.rank
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, parts * n - T)).unflatten(1, (parts, n))
    tokens = (T - torch.arange(parts, device=x.device) * n).clamp(1, n).to(x.dtype)
    return padded.sum(2) / tokens[:, None, None]


def _phantoms(config: Any, T: int, like: Tensor) -> Tensor:
    """Logits [T, phantoms] of the keys that the released code reads before the start: 0 (and the count bias), or not there."""
    i = torch.arange(T, device=like.device)
    columns = [(i < config.block, config.block, 0.0)]
    for level in range(1, config.levels + 1):
        w = config.width(level)
        bias = math.log(w / config.rank) if config.count_bias else 0.0
        columns.append((i < 2 * w, config.rank, bias))  # group -2
        columns.append(((i < 2 * w) & (i // w % 2 == 1), config.rank, bias))  # group -1
    rows = [like.new_full((T,), bias).masked_fill(~there, -math.inf)[:, None].expand(T, n) for there, n, bias in columns]
    return torch.cat(rows, 1)
