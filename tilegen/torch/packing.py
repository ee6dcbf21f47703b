"""Packed sequences: one row of tokens and where each sequence begins, without a look at the device from the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tilegen.errors import ArgumentError


def check_cu_seqlens(cu_seqlens: Any, name: str, x: Tensor) -> Tensor:
    """`cu_seqlens` int32 [S+1] for the packed tokens `x` [1, T, ...], where it has that form.

    Its values (first 0, last T, none below the one before) are not looked at, which would need a synchronisation.

    Raises
    ------
    ArgumentError
        When type, shape, dtype or device are wrong, or `x` has more than one row.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise ArgumentError(
            f"cu_seqlens is a {type(cu_seqlens).__name__}, must be a torch.Tensor; convert it with torch.as_tensor"
        )
    if cu_seqlens.dtype is not torch.int32:
        dtype = str(cu_seqlens.dtype).removeprefix("torch.")
        raise ArgumentError(f"cu_seqlens has dtype {dtype}, must be int32; cast it with .to(torch.int32)")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ArgumentError(
            f"cu_seqlens has shape {list(cu_seqlens.shape)}, must be [S+1] for S >= 1 sequences: 0, the end of each sequence, and T last"
        )
    if cu_seqlens.device != x.device:
        raise ArgumentError(f"cu_seqlens is on {cu_seqlens.device}, must be on {x.device} as {name} is; move it with .to()")
    if x.dim() < 2 or x.shape[0] != 1:
        raise ArgumentError(
            f"{name} has shape {list(x.shape)}, must be [1, T, ...] with cu_seqlens; put all sequences into one row"
        )
    return cu_seqlens


def starts(cu_seqlens: Tensor, length: int) -> Tensor:
    """int32 [1, T], 1 where a sequence starts; an empty sequence starts where the next one does."""
    marks = torch.zeros(length + 1, dtype=torch.int32, device=cu_seqlens.device)
    return marks.index_fill(0, cu_seqlens.long().clamp(0, length), 1)[:length].unsqueeze(0)
