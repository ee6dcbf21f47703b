"""Short-long convolution in plain PyTorch, twice: by torch's own convolution, and by the Fourier transform.

Both compute in the dtype of their arguments; cast to float64 for a reference.  Kernels have their taps first, [K, C]::

    y = K_l * silu(K_s * x)          (K * x)_t = sum_l K_l x_{t-l+r},  r = 0 causal, (K - 1) / 2 otherwise
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def forward(config: Any, x: Tensor, short: Tensor, long: Tensor) -> tuple[Tensor, ...]:
    """`x` [B, T, C], `short` [Ks, C], `long` [Kl, C] -> y [B, T, C]."""
    return (convolve(config, F.silu(convolve(config, x, short)), long),)


def fourier(config: Any, x: Tensor, short: Tensor, long: Tensor) -> tuple[Tensor, ...]:
    """The same in O(T log T), as PyTorch does it fastest for long kernels; padded, so that nothing wraps around."""
    hidden = F.silu(convolve(config, x, short))
    time, taps = x.shape[1], long.shape[0]
    size, first = time + taps - 1, 0 if config.causal else (taps - 1) // 2
    product = torch.fft.rfft(hidden, size, dim=1) * torch.fft.rfft(long, size, dim=0)
    return (torch.fft.irfft(product, size, dim=1)[:, first : first + time],)


def convolve(config: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """The depthwise convolution of `x` [B, T, C] with `kernel` [K, C]."""
    taps, channels = kernel.shape
    sides = (taps - 1, 0) if config.causal else ((taps - 1) // 2, (taps - 1) // 2)
    padded = F.pad(x.transpose(1, 2), sides)
    return F.conv1d(padded, kernel.flip(0).t().unsqueeze(1), groups=channels).transpose(1, 2)


def spectrum(config: Any, taps: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """`taps` [S, D m, C], tables as ``tables.py`` has them -> the kernels of every frequency, [C / width, S, 3 N, 2 m, width]."""
    pieces = taps.unflatten(1, (config.lags, config.length))
    parts = torch.einsum("ed,sdic->seic", v.to(taps.dtype), pieces).unflatten(1, (-1, 2))
    kernels = torch.einsum("fkhe,sfeic->sfkhic", w.to(taps.dtype).unflatten(0, (-1, 3)), parts).flatten(3, 4).flatten(1, 2)
    return (kernels.unflatten(3, (-1, config.width)).permute(3, 0, 1, 2, 4),)


def blocks(config: Any, x: Tensor, kernels: Tensor, u: Tensor, g: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """`x` [B, N m, C] and what `spectrum` gives for one kernel -> y [B, N m, C]."""
    m, dtype = config.length, x.dtype
    parts = torch.einsum("en,bnic->beic", u.to(dtype), x.unflatten(1, (config.blocks, m))).unflatten(1, (-1, 2))
    factors = torch.einsum("fke,bfeic->bfkic", a.to(dtype).unflatten(0, (-1, 3)), parts).flatten(1, 2)
    number = torch.arange(m, device=x.device)
    toeplitz = kernels[:, 0].to(dtype).permute(1, 2, 0, 3).flatten(2)[:, number[:, None] - number + m]
    products = torch.einsum("rijc,brjc->bric", toeplitz, factors).unflatten(1, (-1, 3))
    sums = torch.einsum("fek,bfkic->bfeic", z.to(dtype).unflatten(0, (-1, 2)), products).flatten(1, 2)
    return (torch.einsum("ne,beic->bnic", g.to(dtype), sums).flatten(1, 2),)
