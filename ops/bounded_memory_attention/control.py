"""Control strategies of ABC: what each method writes into which slot.

Peng et al. (2022) see earlier efficient attentions as one mechanism with different control.  Each function makes the argument
`s` of `bounded_memory_attention`; its first line says with which ``normalizer``.  Where a token belongs to one slot, s is 0
there and -inf elsewhere: with ``normalizer="running"`` a slot is then the mean of its tokens so far, or of all its tokens with
``causal=False``, and slots without tokens take no part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tilegen.errors import ArgumentError

OVERWRITE = 1000.0
"""The growth of s at which the average of a slot is its last token: exp(-1000) is 0 in every dtype."""


def linformer(weight: Tensor, time: int, *, start: int = 0) -> Tensor:
    """Learned projections of the sequence, for ``normalizer="none"``: token i is written with column i of W.

    Causal, the slots are the prefix sums of the projection; that of Linformer (Wang et al., 2020) itself is ``causal=False``.

    Parameters
    ----------
    weight : [H, N, M], one N x M projection a head; M is the longest sequence.
    time : T, tokens to be written.
    start : position of the first of them.

    Returns
    -------
    [1, T, H, N]; ``expand`` it to the batch.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        raise ArgumentError("weight must be a tensor [H, N, M]")
    if not 0 < time <= weight.shape[2] - start or start < 0:
        raise ArgumentError(f"positions {start} to {start + time - 1} do not fit the M = {weight.shape[2]} columns of weight; make M larger")
    return weight[..., start : start + time].permute(2, 0, 1).unsqueeze(0)


def cluster(assignment: Tensor, slots: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Membership in clusters, for ``normalizer="running"``: a slot is the mean of its cluster.

    Causal, the mean is over the members so far; ``causal=False`` attends to centroids.

    Parameters
    ----------
    assignment : integers [B, T, H], the cluster of each token, 0 <= a < N.
    slots : N.

    Returns
    -------
    [B, T, H, N], 0 at the cluster and -inf elsewhere.
    """
    if not isinstance(assignment, Tensor) or assignment.dim() != 3 or assignment.dtype.is_floating_point:
        raise ArgumentError("assignment must be a tensor [B, T, H] of integers, the slot of each token")
    member = assignment.unsqueeze(-1) == torch.arange(slots, device=assignment.device)
    return torch.zeros(member.shape, dtype=dtype, device=assignment.device).masked_fill(~member, -math.inf)


def window(time: int, slots: int, *, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The last N tokens, for ``normalizer="running"``, causal only: attention in a sliding window.

    The paper's shift memory, K_i = shift(K_{i-1}) + e_N (x) k_i, up to the order of slots, to which a softmax is blind: token i
    overwrites slot i mod N.  Its s is `OVERWRITE` above that of the token before it in the slot.

    Parameters
    ----------
    time : T.
    slots : N, the width of the window.
    start : position of the first token.

    Returns
    -------
    float32 [1, T, 1, N]; ``expand`` it to batch and heads, and do not round it to half precision.
    """
    _positive("slots", slots)
    position = torch.arange(start, start + time, device=device)
    turn = (position // slots).float() * OVERWRITE
    member = (position % slots).unsqueeze(-1) == torch.arange(slots, device=device)
    return turn.unsqueeze(-1).masked_fill(~member, -math.inf)[None, :, None, :]


def compressive(
    time: int, slots: int, rate: int, *, start: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Means of c tokens in a row, for ``normalizer="running"``: slot floor(i / c), the last one over the tokens it has.

    Parameters
    ----------
    time : T; start + T must be at most N c.
    slots : N.
    rate : c, tokens a slot.
    start : position of the first token.

    Returns
    -------
    [1, T, 1, N]; ``expand`` it to batch and heads.
    """
    _positive("rate", rate)
    if not start + time <= slots * rate:
        raise ArgumentError(f"rate is {rate}: {slots} slots hold {slots * rate} tokens, not {start + time}; use a larger rate or more slots")
    position = torch.arange(start, start + time, device=device)
    return cluster((position // rate)[None, :, None], slots, dtype=dtype)


def random(
    batch: int,
    time: int,
    heads: int,
    slots: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A slot drawn at random for every token, for ``normalizer="running"``: a slot is the mean of its tokens.

    Returns
    -------
    [B, T, H, N].
    """
    drawn = torch.randint(slots, (batch, time, heads), generator=generator, device=device)
    return cluster(drawn, slots, dtype=dtype)


def mlp(x: Tensor, weight: Tensor, *, clamp: float | None = 32.0) -> Tensor:
    """Learned and contextual control, ABC_MLP: s = W x, for ``normalizer="running"`` or ``"fixed"``.

    With ``causal=False`` this is attention of N learned queries over the sequence.

    Parameters
    ----------
    x : [B, T, C].
    weight : [H, N, C].
    clamp : s is kept within plus and minus this, as in flash-linear-attention; None for no limit, which the operator does not need.

    Returns
    -------
    [B, T, H, N] in the dtype of x.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        raise ArgumentError("weight must be a tensor [H, N, C]")
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] != weight.shape[2]:
        raise ArgumentError(f"x must be a tensor [B, T, C] with C = {weight.shape[2]}, the last dim of weight")
    s = torch.einsum("btc,hnc->bthn", x, weight)
    return s if clamp is None else s.clamp(-clamp, clamp)


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} is {value!r}, must be an integer of at least 1")
