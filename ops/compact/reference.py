"""Compaction in plain PyTorch: boolean indexing, which looks at the data on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compact(config: Any, x: Tensor, active: Tensor, room: Tensor) -> tuple[Tensor, ...]:
    """`x` [B T, C], `active` bool [B, T], `room` [R] -> packed [R, C], zeros after the last row, cu_seqlens int32 [B+1]."""
    found, spare = x[active.flatten()], room.shape[0] - int(active.sum())
    if spare < 0:
        raise ValueError(f"{room.shape[0]} rows are too few by {-spare}")
    packed = torch.nn.functional.pad(found, (0, 0, 0, spare))
    cu_seqlens = torch.nn.functional.pad(active.sum(1).cumsum(0), (1, 0)).int()
    if not config.return_positions:
        return packed, cu_seqlens
    times = torch.arange(active.shape[1], device=x.device, dtype=torch.int32).expand(active.shape)
    return packed, cu_seqlens, torch.nn.functional.pad(times[active], (0, spare))


def extract(config: Any, packed: Tensor, starts: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """`packed` [R, C], `starts` [B], `active` bool [B, T] -> y [B, T, C], sequence after sequence."""
    parts = []
    for first, row in zip(starts.tolist(), active, strict=True):
        found = packed[first : first + int(row.sum())]
        parts.append(
            torch.zeros(*row.shape, packed.shape[1], dtype=packed.dtype, device=packed.device).masked_scatter(row[:, None], found)
        )
    return (torch.stack(parts),)
