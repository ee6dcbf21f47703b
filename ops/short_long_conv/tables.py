"""The matrices of a discrete Fourier transform over 2 N blocks, real, for `blocks.py`.

Row e = 2 f has cos(pi f n / N), row 2 f + 1 has -sin(pi f n / N).  Frequencies 0 and N have no imaginary part: rows 0 and 1 are these two, and
their products are products of real numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tables(NamedTuple):
    """u [2N, N] transforms a sequence, v [2N, D] a kernel, g [N, 2N] what comes back; a [3N, 2], w [3N, 2, 2], z [2N, 3] make products."""

    u: Tensor
    v: Tensor
    g: Tensor
    a: Tensor
    w: Tensor
    z: Tensor


_known: dict[tuple[Any, ...], Tables] = {}


def tables(config: Any, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a `BlockConfig`, rounded from float64."""
    # What is made while torch traces, or with its tensors replaced by others, is no use for later calls.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return _rounded(config, dtype, device)
    key = (config, dtype, device)
    if key not in _known:
        with torch.inference_mode(False), torch.no_grad():
            _known[key] = _rounded(config, dtype, device)
    return _known[key]


def _rounded(config: Any, dtype: torch.dtype, device: torch.device) -> Tables:
    return Tables(*(x.to(device, dtype) for x in _made(config)))


def _made(config: Any) -> tuple[Tensor, ...]:
    N = config.blocks
    u = _rows(N, torch.arange(N))
    v = _rows(N, torch.arange(config.lags) - (0 if config.causal else N))
    # The inverse: frequencies between 0 and N stand for their conjugates too.
    g = u.t() / N
    g[:, :2] /= 2
    a = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(N, 1)
    a[:3] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    z = torch.tensor([[1.0, 0.0, -1.0], [1.0, 1.0, 0.0]], dtype=torch.float64).repeat(N, 1)
    z[:2] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return u, v, g.contiguous(), a, _turned(N), z


def _rows(N: int, n: Tensor) -> Tensor:
    """[2N, len(n)]: the transform of numbers at places n."""
    # The angle modulo a whole turn, in integers: exact however large f n is.
    angle = (torch.arange(N)[:, None] * n % (2 * N)).double() * (math.pi / N)
    rows = torch.stack([angle.cos(), -angle.sin()], 1)
    rows[0, 1] = 1.0 - 2.0 * (n % 2)
    return rows.flatten(0, 1)


def _turned(N: int) -> Tensor:
    """[3N, 2, 2]: the kernel of product r from the real and the imaginary part of frequency f = r // 3.

    The first half of a kernel's lags are those of the block before: a turn by -pi f / N.
    """
    angle = torch.arange(N, dtype=torch.float64) * (math.pi / N)
    one, none = torch.ones_like(angle), torch.zeros_like(angle)
    real = torch.stack([torch.stack([angle.cos(), angle.sin()], 1), torch.stack([one, none], 1)], 1)  # [N, half, part]
    imaginary = torch.stack([torch.stack([-angle.sin(), angle.cos()], 1), torch.stack([none, one], 1)], 1)
    w = torch.stack([real, imaginary - real, real + imaginary], 1)
    w[0] = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, -1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    return w.flatten(0, 1)
