"""Biases by the distance between positions that tokens had before they were packed: which entry of a table each pair has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.local_attention import LOOKUP, Config, LookupConfig
from tilegen.torch import operator
from tilegen.torch.arguments import described, widened

_lookup = operator(LOOKUP)


def check_positions(name: str, positions: Any, x: Any) -> Any:
    """`positions` where they are integers [B, T] as `x` has them."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return positions  # the check of arguments will say so
    if not isinstance(positions, Tensor) or positions.dtype not in (torch.int32, torch.int64) or positions.shape != x.shape[:2]:
        what = f"{positions.dtype} {list(positions.shape)}" if isinstance(positions, Tensor) else type(positions).__name__
        raise ArgumentError(f"{name} is {what}, must be int32 or int64 [B, T] = {list(x.shape[:2])}")
    return positions


def check_table(bias: Any, causal: bool) -> Tensor:
    """`bias` where it is a table by distance: as many entries as you like when causal, an odd number otherwise."""
    if not isinstance(bias, Tensor) or bias.dim() != 2 or not bias.is_floating_point() or 0 in bias.shape:
        raise ArgumentError(f"bias has {described(bias)}, must be a floating tensor [H, M] with bias_positions")
    if not causal and bias.shape[1] % 2 == 0:
        raise ArgumentError(f"bias has M = {bias.shape[1]}, must be odd when not causal: distances from -R to R; pad it")
    return bias


def rows(config: Config, bias: Tensor, positions: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, like: Any) -> Tensor:
    """The biases of all pairs [B, T, H, w+1 (+w)] from the table `bias` [H, M], for tokens that had `positions` [B, T].

    Entry R + p_j - p_i belongs to query i and key j, where R is the last entry when causal and the one in the middle otherwise; what lies
    farther away than the table reaches has its first, or last, entry.

    Parameters
    ----------
    past : positions of the keys before the first [B, w] (of every sequence [S, w] where they are packed).
    """
    at = positions.int()
    keys = _keys(config, at, past, cu_seqlens)
    farthest = bias.shape[1] - 1 if config.causal else bias.shape[1] // 2
    entry = (keys - at.unsqueeze(2) + farthest).clamp(0, bias.shape[1] - 1)
    if cu_seqlens is not None:
        # Rows behind the last bound have no gradient that could be added to the table's.
        entry = entry.masked_fill(torch.arange(entry.shape[1], device=entry.device)[:, None] >= cu_seqlens[-1], -1)
    table = widened(bias, like)
    (found,) = _lookup(LookupConfig(), {"table": table, "entry": entry.flatten(0, 1)})
    return found.unflatten(0, at.shape)


def last(window: int, positions: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The positions of the last w keys of every sequence, oldest first."""
    at = positions.int()
    count = at.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    before = at.new_zeros(count, window) if past is None else past
    if cu_seqlens is None:
        return torch.cat([before, at], 1)[:, -window:]
    number = torch.arange(window, device=at.device)
    place = cu_seqlens[1:, None] - window + number
    older = before.gather(1, (cu_seqlens.diff().unsqueeze(1) + number).clamp(max=window - 1).long())
    return torch.where(place >= cu_seqlens[:-1, None], at[0][place.clamp(min=0).long()], older)


def _keys(config: Config, at: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The position of key m of every row [B, T, w+1 (+w)]: that of row t - w + m, of the past, or any number where there is none."""
    w, dense = config.window, cu_seqlens is None
    before = at.new_zeros(at.shape[0], w) if past is None or not dense else past
    parts = [before, at, at.new_zeros(at.shape[0], config.ahead)]
    keys = torch.cat(parts, 1).unfold(1, config.span, 1)
    if past is None or cu_seqlens is None:
        return keys
    row, number = torch.arange(at.shape[1], device=at.device, dtype=torch.int32), torch.arange(config.span, device=at.device)
    owner = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True).clamp(max=past.shape[0] - 1)
    slot = (row - cu_seqlens[owner]).unsqueeze(1) + number
    return torch.where(slot < w, past[owner].gather(1, slot.clamp(0, w - 1).long()), keys[0]).unsqueeze(0)
