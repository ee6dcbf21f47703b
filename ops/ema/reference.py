"""Multi-head damped EMA in plain PyTorch, twice over: the recurrence and the convolution with its explicit kernel.

Both compute in the dtype of their arguments; cast to float64 for a reference.  The options are those of `Config`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def coefficients(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """q = 1 - p sigma(alpha) and w = p beta gamma N^-1/2, with p = sigma(delta); all [C, N]."""
    p = torch.sigmoid(delta)
    return 1 - p * torch.sigmoid(alpha), p * beta * gamma * delta.shape[1] ** -0.5


def forward(
    config: Any, x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Token by token: `x` [B, T, C], parameters [C, N] ([2C, N] when bidirectional), `omega` [C] -> y (and h [B, C, N])."""
    wide = delta.dtype
    q, w = coefficients(delta, alpha, beta, gamma)
    batch, _, channels = x.shape
    rows, x = x.dtype, x.to(wide)
    y = omega * x
    state = torch.zeros(batch, channels, delta.shape[1], dtype=wide, device=x.device) if h is None else h
    parts, state = recurrence(x, q[:channels], state)
    y = y + (parts * w[:channels]).sum(-1)
    if not config.causal:
        parts, _ = recurrence(x.flip(1), q[channels:], torch.zeros_like(state))
        y = y + (parts * w[channels:]).sum(-1).flip(1)
    y = y.to(rows)
    return (y, state) if config.return_state else (y,)


def recurrence(x: Tensor, q: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = q h_{t-1} + x_t: all of them [B, T, C, N], and the last [B, C, N]."""
    states = []
    for t in range(x.shape[1]):
        h = q * h + x[:, t].unsqueeze(-1)
        states.append(h)
    return torch.stack(states, 1), h


def kernel(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int) -> Tensor:
    """The filter at lags 0 .. length-1 [C, length]: sum_n w_n q_n^l, by way of exp(l log q)."""
    q, w = coefficients(delta, alpha, beta, gamma)
    lags = torch.arange(length, dtype=delta.dtype, device=delta.device)
    return (w.unsqueeze(-1) * torch.exp(lags * torch.log(q).unsqueeze(-1))).sum(1)


def convolution(
    config: Any, x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor
) -> tuple[Tensor, ...]:
    """The published form: a convolution as long as the sequence, by FFT in the dtype of the parameters."""
    channels, time = x.shape[2], x.shape[1]
    rows, x = x.dtype, x.to(delta.dtype).transpose(1, 2)
    k = kernel(delta, alpha, beta, gamma, time)
    both = torch.zeros(channels, 2 * time, dtype=k.dtype, device=k.device)
    both[:, :time] += k[:channels]
    if not config.causal:
        both[:, 0] += k[channels:, 0]
        both[:, time + 1 :] += k[channels:, 1:].flip(1)
    y = torch.fft.irfft(torch.fft.rfft(x, 2 * time) * torch.fft.rfft(both), 2 * time)[..., :time]
    return ((y + omega.unsqueeze(-1) * x).transpose(1, 2).to(rows),)
