"""How short-long convolution is measured, and what it must do at least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tilegen.bench.spec import Benchmark, Work


def arguments(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x [B, T, C] and the kernels as the public operator takes them, taps last."""
    x, short, long = tensors
    return x, short.t(), long.t()


def fourier(config: Any, x: Tensor, short: Tensor, long: Tensor) -> tuple[Tensor, ...]:
    """The usual form of long convolutions in PyTorch: `short` by shifts, `long` by real FFTs of a power of two.

    FFTs are made in float32 (float64 for float64): those of half precision are of no use, and have no bfloat16.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    time, taps, ahead = x.shape[1], long.shape[0], 0 if config.causal else (short.shape[0] - 1) // 2
    padded = F.pad(x.to(wide), (0, 0, short.shape[0] - 1 - ahead, ahead))
    terms = [short[tap].to(wide) * padded[:, short.shape[0] - 1 - tap :][:, :time] for tap in range(short.shape[0])]
    low = sum(terms[1:], terms[0])
    first, size = 0 if config.causal else (taps - 1) // 2, _size(time, taps)
    product = torch.fft.rfft(F.silu(low), size, dim=1) * torch.fft.rfft(long.to(wide), size, dim=0)
    return (torch.fft.irfft(product, size, dim=1)[:, first : first + time].to(x.dtype),)


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads x and the kernels and writes y.

    An element needs its taps of the short kernel, 4 operations of SiLU, and either its taps of the long kernel (those that see
    the sequence) or its share of two FFTs and a product of spectra, whichever is less; the kernels' FFTs are one sequence more.
    """
    rows, C = sizes["B"] * sizes["T"], sizes["C"]
    near, far = _pairs(config, sizes["T"], sizes["Ks"]), _pairs(config, sizes["T"], sizes["Kl"])
    long = min(2 * sizes["B"] * far, (2 * sizes["B"] + 1) * _transform(sizes) + sizes["B"] * _product(sizes))
    return Work(C * (2 * sizes["B"] * near + 4 * rows + long), 2 * rows * C + _taps(sizes))


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads x, the kernels and dy, writes the gradients of all three; the hidden sequence is computed again.

    The short kernel runs three times and SiLU once with its slope (10 operations); the long kernel's adjoints are two sums over
    taps, or FFTs of dy and the hidden sequence, two products and the FFTs back: three a sequence, and two of kernels.
    """
    rows, C = sizes["B"] * sizes["T"], sizes["C"]
    near, far = _pairs(config, sizes["T"], sizes["Ks"]), _pairs(config, sizes["T"], sizes["Kl"])
    long = min(4 * sizes["B"] * far, (3 * sizes["B"] + 2) * _transform(sizes) + 2 * sizes["B"] * _product(sizes))
    return Work(C * (6 * sizes["B"] * near + 10 * rows + long), 3 * rows * C + 2 * _taps(sizes))


def _pairs(config: Any, time: int, taps: int) -> int:
    """Pairs of a position and a tap that lies within the sequence."""
    reach = 0 if config.causal else (taps - 1) // 2
    lags = range(-min(reach, time - 1), min(taps - reach, time))
    return sum(time - abs(lag) for lag in lags)


def _size(time: int, taps: int) -> int:
    return 1 << max(1, (time + taps - 2).bit_length())


def _transform(sizes: Mapping[str, int]) -> float:
    """Operations of one real FFT."""
    size = _size(sizes["T"], sizes["Kl"])
    return 2.5 * size * math.log2(size)


def _product(sizes: Mapping[str, int]) -> float:
    """Operations of one product of spectra: six for each of half as many complex numbers."""
    return 3 * _size(sizes["T"], sizes["Kl"])


def _taps(sizes: Mapping[str, int]) -> int:
    return sizes["C"] * (sizes["Ks"] + sizes["Kl"])


BENCHMARK = Benchmark(
    mechanism="short_long_conv",
    options=({}, {"causal": False}),
    sizes={"B": 4, "T": 1024, "Kl": 1023, "C": 256, "Ks": 3},
    lengths=(256, 512, 1024, 2048),
    peer=fourier,
    forward=forward,
    backward=backward,
    arguments=arguments,
)
