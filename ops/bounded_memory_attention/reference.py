"""Attention with bounded-memory control in plain PyTorch: the recurrence and the pairwise definition.

Both compute in the dtype of their arguments; cast to float64 for a reference.  The options are those of `Config`::

    K_i = sum_{j<=i} w_ij (x) k_j        V_i = sum_{j<=i} w_ij (x) v_j        o_i = softmax(scale K_i q_i) V_i

    w_ij = exp(s_j - z_i)  running       exp(s_j - z_j)  fixed       s_j  none       z_i = log sum_{j<=i} exp(s_j)
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
    s: Tensor,
    K: Tensor | None = None,
    V: Tensor | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The recurrence: `q`, `k` [B, T, H, D], `v` [B, T, H, E], `s` [B, T, H, N] -> o [B, T, H, E] (and K, V, z)."""
    if not config.causal:
        return pairwise(config, q, k, v, s)
    if K is None:
        K = q.new_zeros(*s[:, 0].shape, q.shape[3])
    if V is None:
        V = q.new_zeros(*s[:, 0].shape, v.shape[3])
    if z is None:
        z = torch.full_like(s[:, 0], -math.inf)
    rows = []
    for t in range(q.shape[1]):
        w, kept = s[:, t], torch.ones_like(s[:, t])
        if config.normalizer != "none":
            before, z = z, logaddexp(z, s[:, t])
            w, kept = share(s[:, t], z), share(before, z) if config.normalizer == "running" else kept
        K = kept.unsqueeze(-1) * K + w.unsqueeze(-1) * k[:, t].unsqueeze(2)
        V = kept.unsqueeze(-1) * V + w.unsqueeze(-1) * v[:, t].unsqueeze(2)
        present = z != -math.inf if config.normalizer != "none" else torch.ones_like(z, dtype=torch.bool)
        rows.append(attend(config, q[:, t], K, V, present))
    states = (K, V) if config.normalizer == "none" else (K, V, z)
    return (torch.stack(rows, 1), *states) if config.return_state else (torch.stack(rows, 1),)


def pairwise(config: Any, q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """The O(T^2 N) definition, without states: every weight w_ijn is formed."""
    time = q.shape[1]
    sees = torch.ones(time, time, dtype=torch.bool, device=q.device)
    sees = (sees.tril() if config.causal else sees)[None, :, :, None, None]
    S = s.unsqueeze(1).expand(-1, time, -1, -1, -1)  # [B, i, j, H, N]
    if config.normalizer == "none":
        w, present = S.masked_fill(~sees, 0), torch.ones_like(s, dtype=torch.bool)
    else:
        S = S.masked_fill(~sees, -math.inf)
        present = S.amax(2) > -math.inf
        # Rows of -inf only become rows of 0 before the softmax, which has no gradient to give them.
        w = S.masked_fill(~present.unsqueeze(2), 0).softmax(2).masked_fill(~present.unsqueeze(2), 0)
        if config.normalizer == "fixed" and config.causal:
            own = torch.diagonal(w, dim1=1, dim2=2).movedim(-1, 1)  # [B, j, H, N], each token's weight when it was written
            w = own.unsqueeze(1).expand_as(S).masked_fill(~sees, 0)
    K, V = torch.einsum("bijhn,bjhd->bihnd", w, k), torch.einsum("bijhn,bjhe->bihne", w, v)
    return (attend(config, q, K, V, present),)


def attend(config: Any, q: Tensor, K: Tensor, V: Tensor, present: Tensor) -> Tensor:
    """Softmax attention of `q` [..., D] to the slots K [..., N, D], V [..., N, E] that are `present` [..., N]."""
    scale = q.shape[-1] ** -0.5 if config.scale is None else config.scale
    logits = (K * q.unsqueeze(-2)).sum(-1) * scale
    none = ~present.any(-1, keepdim=True)
    p = logits.masked_fill(~(present | none), -math.inf).softmax(-1).masked_fill(none, 0)
    return (p.unsqueeze(-1) * V).sum(-2)


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), with zero gradient where both are -inf."""
    empty = (a == -math.inf) & (b == -math.inf)
    return torch.logaddexp(a.masked_fill(empty, 0), b.masked_fill(empty, 0)).masked_fill(empty, -math.inf)


def share(term: Tensor, z: Tensor) -> Tensor:
    """exp(term - z), 0 where z is -inf."""
    empty = z == -math.inf
    return torch.exp(term.masked_fill(empty, 0) - z.masked_fill(empty, 0)).masked_fill(empty, 0)


def chunked(config: Any, q: Tensor, k: Tensor, v: Tensor, s: Tensor, chunk: int = 32) -> tuple[Tensor, ...]:
    """Without states and for finite s, as PyTorch runs it fastest: batched products, no loop over chunks.

    The slots before chunk c are a product with the decays between all pairs of chunks, T^2 / chunk^2 numbers a slot.
    """
    time = q.shape[1]
    if not config.causal:
        w = s if config.normalizer == "none" else s.softmax(1)
        K, V = torch.einsum("bthn,bthd->bhnd", w, k), torch.einsum("bthn,bthe->bhne", w, v)
        return (torch.einsum("bthn,bhne->bthe", _softmax(config, q, torch.einsum("bthd,bhnd->bthn", q, K)), V),)
    padding = 0.0 if config.normalizer == "none" else -math.inf
    Q, K, V, S = (_tiles(_padded(x, chunk, value), chunk) for x, value in ((q, 0.0), (k, 0.0), (v, 0.0), (s, padding)))
    below = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    A = Q @ K.transpose(-1, -2)
    z = None if config.normalizer == "none" else _tiles(_padded(s, chunk, -math.inf).logcumsumexp(1), chunk)
    if config.normalizer == "running":
        end = z[:, :, :, -1]
        before = torch.cat([torch.full_like(end[:, :1], -math.inf), end[:, :-1]], 1)
        E = (S.unsqueeze(3) - z.unsqueeze(4)).masked_fill(~below.unsqueeze(-1), -math.inf).exp()  # [B, nc, H, i, j, N]
        w, r = (S - end.unsqueeze(3)).exp(), (before.unsqueeze(3) - z).exp()
        n = q.new_ones(end.shape[1], end.shape[1], dtype=torch.bool).tril(-1)[None, :, :, None, None]
        G = (end[:, None] - end.roll(1, 1)[:, :, None]).masked_fill(~n, -math.inf).exp()  # [B, c, c', H, N]
        past = lambda X: torch.einsum("bcxhn,bxhnd->bchnd", G, w.transpose(-1, -2) @ X)
        inside = torch.einsum("bchij,bchijn->bchin", A, E)
        gather = lambda U: torch.einsum("bchin,bchijn->bchij", U, E)
    else:
        w = S if z is None else (S - z).exp()
        r = torch.ones_like(w)
        past = lambda X: (w.transpose(-1, -2) @ X).cumsum(1) - w.transpose(-1, -2) @ X
        inside = (A * below) @ w
        gather = lambda U: (U @ w.transpose(-1, -2)) * below
    p = _softmax(config, q, inside + r * (Q @ past(K).transpose(-1, -2)))
    O = gather(p) @ V + (p * r) @ past(V)
    return (O.transpose(2, 3).flatten(1, 2)[:, :time],)


def _padded(x: Tensor, chunk: int, value: float) -> Tensor:
    """[B, T, H, X] with T rounded up to whole chunks."""
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk), value=value)


def _tiles(x: Tensor, chunk: int) -> Tensor:
    """[B, nc C, H, X] as [B, nc, H, C, X]."""
    return x.unflatten(1, (-1, chunk)).transpose(2, 3)


def _softmax(config: Any, q: Tensor, logits: Tensor) -> Tensor:
    return (logits * (q.shape[-1] ** -0.5 if config.scale is None else config.scale)).softmax(-1)
