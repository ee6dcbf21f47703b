"""The public operators of compaction."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.compact import COMPACT, EXTRACT, Config, ExtractConfig
from tilegen.torch import operator
from tilegen.torch.capacity import require_room

_compact, _extract = operator(COMPACT), operator(EXTRACT)


@overload
def compact(
    x: Tensor, active: Tensor, *, capacity: int | None = None, return_positions: Literal[False] = False
) -> tuple[Tensor, Tensor]: ...


@overload
def compact(
    x: Tensor, active: Tensor, *, capacity: int | None = None, return_positions: Literal[True]
) -> tuple[Tensor, Tensor, Tensor]: ...


def compact(
    x: Tensor, active: Tensor, *, capacity: int | None = None, return_positions: bool = False
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The active rows of every sequence, one after another in their order, without a look at the device from the host.

    Differentiable once, in x.

    Parameters
    ----------
    x : [B, T, C], one floating dtype; any T >= 1 and any strides.
    active : bool [B, T].
    capacity : rows of the result, by default B T, which always suffices.  More active rows than that are an error: at once
        where the host can see them, otherwise when the host next waits for the device.
    return_positions : also give the place of each packed row in its own sequence.

    Returns
    -------
    packed [capacity, C], and cu_seqlens int32 [B+1]: rows ``cu_seqlens[b]`` up to ``cu_seqlens[b+1]`` are those of sequence b.
    With `return_positions` also positions int32 [capacity].  What lies behind the last of these rows is unspecified, and gradients
    of it are not read.

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", 2023, where a sequence that is active throughout
    turns compaction off for its whole batch; here each sequence is packed on its own.
    """
    config = Config(return_positions)
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
        raise ArgumentError(f"capacity is {capacity!r}, must be a number of rows of at least 1, or None for all of them")
    _check_rows(x, active)
    rows = x.shape[0] * x.shape[1]
    room = torch.empty(rows if capacity is None else capacity, dtype=torch.int32, device=x.device)
    packed, cu_seqlens, *positions = _compact(config, {"x": x.reshape(rows, x.shape[2]), "active": active, "room": room})
    if capacity is not None and capacity < rows:
        require_room("capacity", capacity, cu_seqlens[-1])
    return (packed, cu_seqlens, positions[0]) if return_positions else (packed, cu_seqlens)


def extract(packed: Tensor, cu_seqlens: Tensor, active: Tensor) -> Tensor:
    """The way back from `compact`: packed rows at the places of active tokens, zeros elsewhere.

    Differentiable once, in packed; rows behind the last one of `cu_seqlens` get zeros.

    Parameters
    ----------
    packed : [R, C], one floating dtype.
    cu_seqlens : int32 [B+1], as `compact` gives it for `active`.
    active : bool [B, T].

    Returns
    -------
    y [B, T, C] in the dtype of packed.

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.
    """
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.dtype is not torch.int32:
        what = f"{cu_seqlens.dtype} {list(cu_seqlens.shape)}" if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise ArgumentError(f"cu_seqlens is {what}, must be int32 [B+1], as compact gives it")
    if isinstance(active, Tensor) and active.dim() == 2 and cu_seqlens.shape[0] != active.shape[0] + 1:
        raise ArgumentError(
            f"cu_seqlens has shape {list(cu_seqlens.shape)}, must be [B+1] = [{active.shape[0] + 1}]; give the one of this active"
        )
    (y,) = _extract(ExtractConfig(), {"packed": packed, "starts": cu_seqlens[:-1], "active": active})
    if packed.shape[0] < active.shape[0] * active.shape[1]:
        require_room("packed.shape[0]", packed.shape[0], cu_seqlens[-1])
    return y


def _check_rows(x: Any, active: Any) -> None:
    """What is lost when batch and time become one axis."""
    if not isinstance(x, Tensor) or x.dim() != 3 or 0 in x.shape:
        what = f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ArgumentError(f"x has {what}, must be a tensor [B, T, C] without an empty dim; reshape x to that form")
    if not isinstance(active, Tensor) or active.shape != x.shape[:2]:
        what = f"shape {list(active.shape)}" if isinstance(active, Tensor) else f"type {type(active).__name__}"
        raise ArgumentError(f"active has {what}, must be a tensor [B, T] = {list(x.shape[:2])} as x has")
