"""Decoding with short-long convolution: one row a step from ring buffers.

A convolution has no state of fixed size: the next row needs the last Ks rows of x and the last Kl rows of silu(K_s * x).  Both
are kept in ring buffers, where row t is at t mod K, so that a step writes one row and moves none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tilegen.errors import ArgumentError
from tilegen.ops.short_long_conv import Config, reference
from tilegen.torch.arguments import acc_dtype


class ShortLongConvState(NamedTuple):
    """What the next step reads.

    x : [B, Ks, C], the last rows of x; hidden : [B, Kl, C], the last rows of silu(K_s * x); row t is at t mod K.
    position : int64, no dims, the number of rows so far.

    The buffers are float32, or float64 beside float64 arguments.
    """

    x: Tensor
    hidden: Tensor
    position: Tensor


def short_long_conv_init_state(batch: int, short: Tensor, long: Tensor, *, past: Tensor | None = None) -> ShortLongConvState:
    """The state before the first step, on the device of the kernels.

    Parameters
    ----------
    short, long : [C, Ks] and [C, Kl], as in `short_long_conv`.
    past : [B, T, C], the rows of x before the first step; none by default.
    """
    dtype = acc_dtype(short.dtype, "short has dtype")
    if past is not None and (past.dim() != 3 or past.shape[0] != batch or past.shape[2] != short.shape[0]):
        raise ArgumentError(f"past has shape {list(past.shape)}, must be [B, T, C] with B = {batch}, C = {short.shape[0]}")
    time = 0 if past is None else past.shape[1]
    rings = []
    with torch.no_grad():
        rows = torch.zeros(batch, 0, short.shape[0], dtype=dtype, device=short.device) if past is None else past.to(dtype)
        # Only the end of the past is read any more; its hidden rows need Ks - 1 rows of x before them.
        rows = rows[:, -(long.shape[1] + short.shape[1]) :]
        hidden = F.silu(reference.convolve(Config(), rows, short.t().to(dtype))) if time else rows
        for kept, taps in ((rows, short.shape[1]), (hidden, long.shape[1])):
            ring = torch.zeros(batch, taps, short.shape[0], dtype=dtype, device=short.device)
            kept = kept[:, -taps:]
            at = torch.arange(time - kept.shape[1], time, device=short.device) % taps
            ring[:, at] = kept
            rings.append(ring)
    return ShortLongConvState(*rings, torch.tensor(time, device=short.device))


def short_long_conv_step(x: Tensor, short: Tensor, long: Tensor, state: ShortLongConvState) -> tuple[Tensor, ShortLongConvState]:
    """One decoding step: the next row of causal `short_long_conv`, and the state after it.

    The buffers of `state` are updated in place (keep a copy to return to it), and there is no gradient.

    Parameters
    ----------
    x : [B, C].
    short, long : [C, Ks] and [C, Kl], as in `short_long_conv`, with branches merged.
    state : from `short_long_conv_init_state` or an earlier step.

    Returns
    -------
    y [B, C] in the dtype of x, and the new state.
    """
    if not isinstance(state, tuple) or len(state) != 3:
        raise ArgumentError(
            f"state is a {type(state).__name__}, must be a ShortLongConvState; make one with short_long_conv_init_state"
        )
    rows, hidden, position = state
    for name, ring, kernel in (("short", rows, short), ("long", hidden, long)):
        wanted = (x.shape[0], kernel.shape[1], kernel.shape[0])
        if x.dim() != 2 or x.shape[1] != kernel.shape[0] or ring.shape != wanted:
            raise ArgumentError(
                f"x has shape {list(x.shape)}, {name} {list(kernel.shape)}, its buffer {list(ring.shape)}; must be [B, C], [C, K], "
                "[B, K, C]: make the state with short_long_conv_init_state for this batch and these kernels"
            )
    with torch.no_grad():
        low = _advance(rows, x, short, position)
        y = _advance(hidden, F.silu(low), long, position)
    return y.to(x.dtype), ShortLongConvState(rows, hidden, position + 1)


def _advance(ring: Tensor, row: Tensor, kernel: Tensor, position: Tensor) -> Tensor:
    """Put `row` into the ring and convolve what is there: tap l belongs to the row at position - l."""
    taps = ring.shape[1]
    ring.index_copy_(1, (position % taps).view(1), row.to(ring.dtype).unsqueeze(1))
    lags = (position - torch.arange(taps, device=ring.device)) % taps  # where tap l lies
    return torch.einsum("bkc,ck->bc", ring.index_select(1, lags), kernel.to(ring.dtype))
