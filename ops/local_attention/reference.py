"""Local attention in plain PyTorch: all pairs, those outside the window masked.

It computes in the dtype of its arguments; cast to float64 for a reference.  The options are those of `Config`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def forward(
    config: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    k_past: Tensor | None = None,
    v_past: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`q`, `k` [B, T, H, D], `v` [B, T, H, E], `bias` [(B, T,) H, w+1 (+w)] -> o [B, T, H, E] (and the last w keys and values)."""
    w, (batch, time) = config.window, q.shape[:2]
    start = 0
    held = torch.zeros(batch, dtype=torch.int32, device=q.device)
    if k_past is not None and v_past is not None and count is not None:
        k, v, start, held = torch.cat([k_past, k], 1), torch.cat([v_past, v], 1), w, count
    i = torch.arange(time, device=q.device)[:, None] + start
    j = torch.arange(k.shape[1], device=q.device)[None, :]
    sees = ((j >= i - w) & (j <= i + config.ahead)).unsqueeze(0) & (j >= start - held[:, None, None])
    if lengths is not None:
        sees = sees & (j < lengths[:, None, None]) & (i < lengths[:, None, None])
    sees = sees.unsqueeze(1)  # [B, 1, T, T]
    logits = torch.einsum("bthd,bshd->bhts", q, k) * config.factor(q.shape[3])
    if bias is not None:
        entry = (j - i + w).clamp(0, bias.shape[-1] - 1)
        if config.by_row:
            logits = logits + bias.to(logits.dtype).transpose(1, 2).gather(3, entry.expand(*logits.shape))
        else:
            logits = logits + bias.to(logits.dtype)[:, entry]
    if config.kind == "softmax":
        weights = torch.softmax(logits.masked_fill(~sees, -math.inf), -1)
        weights = weights.masked_fill(~sees, 0)  # rows that see nothing
    else:
        weights = torch.relu(logits).square().masked_fill(~sees, 0)
    o = torch.einsum("bhts,bshe->bthe", weights, v)
    if not config.return_state:
        return (o,)
    pad = max(0, w - k.shape[1])
    last = [torch.nn.functional.pad(x, (0, 0, 0, 0, pad, 0))[:, -w:] for x in (k, v)]
    return (o, *last, (held + time).clamp(max=w).int())


def lookup(config: Any, table: Tensor, entry: Tensor) -> tuple[Tensor, ...]:
    """`table` [H, M], `entry` [R, P] -> rows [R, H, P], zero where there is no such entry."""
    exists = (entry >= 0) & (entry < table.shape[1])
    found = table[:, entry.long().clamp(0, table.shape[1] - 1)].transpose(0, 1)
    return (found * exists.unsqueeze(1),)


def rotary(x: Tensor, positions: Tensor, base: float = 1e4) -> Tensor:
    """`x` [B, T, H, D] with its pairs (2n, 2n+1) turned by positions [B, T] times base^(-2n/D)."""
    half = x.shape[-1] // 2
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    rates = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = (positions.double().unsqueeze(-1) * rates).unsqueeze(2)  # in float64: float32 has no room for long positions
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    even, odd = x.to(wide).unflatten(-1, (half, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)
