"""Linear attention in plain PyTorch, three times over: the recurrence, the pairwise definition, the chunked form.

All of them compute in the dtype of their arguments; cast to float64 for a reference.  The options are those of `Config`::

    S_t = exp(g_t) S_{t-1} + k_t^T v_t        z_t = exp(g_t) z_{t-1} + k_t        o_t = scale q_t S_t  or  q_t S_t / q_t z_t
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forward(
    config: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    S: Tensor | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The recurrence: `q`, `k` [B, T, H, D], `v` [B, T, H, E] -> o [B, T, H, E] (and S [B, H, D, E], z [B, H, D])."""
    if not config.causal:
        return pairwise(config, q, k, v)
    batch, time, heads, key = q.shape
    if S is None:
        S = q.new_zeros(batch, heads, key, v.shape[3])
    if z is None:
        z = q.new_zeros(batch, heads, key)
    rows = []
    for t in range(time):
        if decay is not None:
            g = (decay if config.decay == "head" else decay[:, t]).exp()
            S, z = g[..., None, None] * S, g[..., None] * z
        S = S + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        numerator = (q[:, t, :, :, None] * S).sum(2)
        rows.append(_finish(config, q, numerator, (q[:, t] * z).sum(-1, keepdim=True)))
    states = (S, z) if config.normalize else (S,)
    return (torch.stack(rows, 1), *states) if config.return_state else (torch.stack(rows, 1),)


def pairwise(config: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None) -> tuple[Tensor, ...]:
    """The O(T^2) definition, without states: o_i = sum_j w_ij v_j with w_ij = q_i k_j exp(g_{j+1} + ... + g_i)."""
    time = q.shape[1]
    w = torch.einsum("bihd,bjhd->bhij", q, k)
    if config.causal:
        if decay is not None:
            g = decay.expand(1, time, -1) if config.decay == "head" else decay
            total = g.cumsum(1).transpose(1, 2)
            span = total[..., :, None] - total[..., None, :]
            w = w * span.masked_fill(torch.ones_like(span, dtype=torch.bool).triu(1), 0).exp()
        w = w.tril()
    return (_finish(config, q, torch.einsum("bhij,bjhe->bihe", w, v), w.sum(-1).transpose(1, 2).unsqueeze(-1)),)


def chunked(config: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The form without decay as PyTorch runs it fastest: batched products, one cumulative sum of the states of the chunks."""
    time = q.shape[1]
    pad = -time % config.chunk
    Q, K, V = (
        torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, config.chunk)).transpose(2, 3) for x in (q, k, v)
    )  # [B, nc, H, C, X]
    states, keys = K.transpose(-1, -2) @ V, K.sum(3)
    if config.causal:
        P = (Q @ K.transpose(-1, -2)).tril()
        S, z = states.cumsum(1) - states, keys.cumsum(1) - keys
        O, total = P @ V + Q @ S, P.sum(-1) + (Q * z.unsqueeze(3)).sum(-1)
    else:
        O, total = Q @ states.sum(1, keepdim=True), (Q * keys.sum(1, keepdim=True).unsqueeze(3)).sum(-1)
    flat = lambda x: x.transpose(2, 3).flatten(1, 2)[:, :time]
    return (_finish(config, q, flat(O), flat(total.unsqueeze(-1))),)


def _finish(config: Any, q: Tensor, numerator: Tensor, total: Tensor) -> Tensor:
    """`numerator` times the scale, or divided by the sum of weights; 0 where that is 0."""
    if not config.normalize:
        return numerator * (q.shape[-1] ** -0.5 if config.scale is None else config.scale)
    empty = total == 0
    return (numerator / total.masked_fill(empty, 1)).masked_fill(empty, 0)
