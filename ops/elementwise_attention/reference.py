"""Element-wise attention in plain PyTorch, three times over: the recurrence, the pairwise definition, the cumulative form.

All of them compute in the dtype of their arguments; cast to float64 for a reference.  The options are those of `Config`::

    y_i = sum_j w_ij v_j / sum_j w_ij        w_ij = exp(-k_j^2) P_t(c2 q_i k_j)        P_t(x) = sum_n x^n / n!
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def forward(
    config: Any, q: Tensor, k: Tensor, v: Tensor, A: Tensor | None = None, B: Tensor | None = None, m: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The moment form, token by token: `q`, `k`, `v` [B, T, C] -> y [B, T, C] (and A, B [B, C, t+1], m [B, C])."""
    if config.exact:
        return pairwise(config, q, k, v)
    k2 = k * k
    shift = k2.detach() if config.stabilise else torch.zeros_like(k2)
    qn, kn = _powers(q, config.order) * _coefficients(config, q), _powers(k, config.order)
    if not config.causal:
        w = torch.exp(shift.amin(1, keepdim=True) - k2).unsqueeze(-1)
        num, den = (w * kn * v.unsqueeze(-1)).sum(1, keepdim=True), (w * kn).sum(1, keepdim=True)
        return ((qn * num).sum(-1) / (qn * den).sum(-1),)

    if A is None or B is None or m is None:
        A = B = torch.zeros_like(kn[:, 0])
        m = torch.full_like(k2[:, 0], torch.finfo(k.dtype).max)
    rows = []
    for i in range(q.shape[1]):
        before, m = m, torch.minimum(m, shift[:, i]) if config.stabilise else shift[:, i]
        decay, w = torch.exp(m - before).unsqueeze(-1), torch.exp(m - k2[:, i]).unsqueeze(-1)
        A = decay * A + w * kn[:, i] * v[:, i].unsqueeze(-1)
        B = decay * B + w * kn[:, i]
        rows.append((qn[:, i] * A).sum(-1) / (qn[:, i] * B).sum(-1))
    y = torch.stack(rows, 1)
    return (y, A, B, m) if config.return_state else (y,)


def pairwise(config: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The O(T^2) definition, stable for any k; ``config.exact`` has exp(c2 q k) in place of its Taylor polynomial."""
    x = config.c2 * q.unsqueeze(2) * k.unsqueeze(1)  # [B, Ti, Tj, C]
    logits = -(k * k).unsqueeze(1).expand_as(x)
    if config.exact:
        logits = logits + x
    if config.causal:
        future = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(future[None, :, :, None], -math.inf)
    w = torch.exp(logits - logits.amax(2, keepdim=True).detach())
    if not config.exact:
        w = w * (_powers(x, config.order) / _factorials(config.order, x)).sum(-1)
    return ((w * v.unsqueeze(1)).sum(2) / w.sum(2),)


def cumulative(config: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The moment form as one writes it in PyTorch, with every moment of every position in memory: what benchmarks compare with.

    `stabilise` shifts by the minimum over the whole sequence, so early rows whose k is much larger lose accuracy.
    """
    k2 = k * k
    w = torch.exp(k2.amin(1, keepdim=True).detach() - k2 if config.stabilise else -k2)
    moments = w.unsqueeze(-1) * _powers(k, config.order)
    weighted = moments * v.unsqueeze(-1)
    if config.causal:
        num, den = weighted.cumsum(1), moments.cumsum(1)
    else:
        num, den = weighted.sum(1, keepdim=True), moments.sum(1, keepdim=True)
    qn = _powers(q, config.order) * _coefficients(config, q)
    return ((qn * num).sum(-1) / (qn * den).sum(-1),)


def _powers(x: Tensor, order: int) -> Tensor:
    """x^0 ... x^order in a new last dim, by multiplication: ``x ** n`` has no accurate gradient at 0."""
    powers = [torch.ones_like(x)]
    for _ in range(order):
        powers.append(powers[-1] * x)
    return torch.stack(powers, -1)


def _factorials(order: int, like: Tensor) -> Tensor:
    return torch.tensor([math.factorial(n) for n in range(order + 1)], dtype=like.dtype, device=like.device)


def _coefficients(config: Any, like: Tensor) -> Tensor:
    """a_n = c2^n / n!"""
    values = [config.c2**n / math.factorial(n) for n in range(config.order + 1)]
    return torch.tensor(values, dtype=like.dtype, device=like.device)
