"""Packed sequences: one row of tokens and where each sequence begins, without a look at the device from the host."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tilegen import settings
from tilegen.errors import ArgumentError


def check_cu_seqlens(cu_seqlens: Any, name: str, x: Any) -> Tensor:
    """`cu_seqlens` int32 [S+1] for the packed tokens `x` [1, T, ...], where it has that form.

    Its values (first 0, last T, none below the one before) are looked at with ``TILEGEN_DEBUG=1`` only: that is a synchronisation.

    Raises
    ------
    ArgumentError
        When type, shape, dtype or device are wrong, or `x` has more than one row; in debug mode when values are.
    """
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} is a {type(x).__name__}, must be a torch.Tensor; convert it with torch.as_tensor")
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
    if settings.debug() and not torch.compiler.is_compiling():
        _check_values(cu_seqlens, name, x.shape[1])
    return cu_seqlens


def _check_values(cu_seqlens: Tensor, name: str, time: int) -> None:
    """What only the device knows."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ArgumentError(f"cu_seqlens starts with {bounds[0]}, must start with 0, the start of the first sequence; put a 0 in front")
    if bounds[-1] != time:
        raise ArgumentError(
            f"cu_seqlens ends with {bounds[-1]}, must end with T = {time} as {name} has; cut {name} to its sequences"
        )
    for s, (a, b) in enumerate(itertools.pairwise(bounds)):
        if b < a:
            raise ArgumentError(
                f"cu_seqlens falls from {a} to {b} after sequence {s}, must not fall; give running totals of the lengths"
            )


def longest_in_debug(cu_seqlens: Any) -> int | None:
    """The longest of packed sequences, which only debug mode reads from the device; None elsewhere."""
    if not settings.debug() or torch.compiler.is_compiling() or not isinstance(cu_seqlens, Tensor) or cu_seqlens.numel() < 2:
        return None
    return int(cu_seqlens.diff().max())


def tables(lengths: Sequence[int], cu_seqlens: Any, name: str, x: Any) -> dict[str, Tensor]:
    """The tables by which a library finds packed sequences, made on their device from `cu_seqlens` [S+1] for `x` [1, T, ...].

    For tiles of every length C in `lengths` (see `tilegen.mechanisms.table_specs`): tiles ``starts[s]`` up to ``ends[s]`` belong
    to sequence s, and ``owner[n]`` is the sequence of tile n.  Sequence s has ceil(length / C) tiles; there is room for the
    most that S sequences of T positions together can have, whatever their lengths, so that no length is read on the host.

    Raises
    ------
    ArgumentError
        As `check_cu_seqlens`.
    """
    bounds = check_cu_seqlens(cu_seqlens, name, x)
    time, sequences = x.shape[1], bounds.shape[0] - 1
    first, last = bounds[:-1], bounds[1:]
    found: dict[str, Tensor] = {}
    for length in lengths:
        starts, ends, count = first, last, time
        if length > 1:
            tiles = (last - first + (length - 1)) // length
            ends = tiles.cumsum(0, dtype=torch.int32)
            starts, count = ends - tiles, (time + sequences * (length - 1)) // length
        numbers = torch.arange(count, dtype=torch.int32, device=bounds.device)
        owner = torch.searchsorted(ends.contiguous(), numbers, right=True, out_int32=True).clamp(max=sequences - 1)
        found |= {f"starts_{length}": starts, f"ends_{length}": ends, f"owner_{length}": owner}
    return found
