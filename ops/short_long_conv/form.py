"""Which form a long convolution takes: the sum of its definition, or blocks with a transform over them.

A position costs 2 K operations one way and 8 N + 6 m the other, and numbers that are not counted as operations: loads, stores, what is
formed from a few others.  Of the sum an operation takes `SLOWER` times as long, since no register is used twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tilegen.ops.short_long_conv import BlockConfig

SLOWER = 3
"""An operation of a direct sum, in operations of a product of matrices."""

AROUND, AROUND_TAP = 60, 200
"""What a position and a tap cost beside the products, in operations of a product of matrices."""

WIDTHS = (16, 8)
"""Channels that may be computed together, a vector or two of them; what has only one group of them is not scheduled as a tile."""

SHORTEST = 512
"""Positions below which the sum stays: it is over in less than a library takes to load."""


def by_blocks(causal: bool, x: Any, long: Any) -> BlockConfig | None:
    """The blocks for `x` [B, T, C] and `long` [C, Kl]; None where the sum is the better form, or an argument does not fit.

    The size of the blocks depends on the power of two that T does not exceed: libraries are few.
    """
    # On a GPU the sum is a product of Toeplitz matrices on tensor cores, in narrow floats, which have no room for spectra.
    if not isinstance(x, Tensor) or x.dim() != 3 or x.device.type != "cpu" or not _alike(x, long):
        return None
    batch, time, channels = x.shape
    width = next((n for n in WIDTHS if channels % n == 0 and channels > n), None)
    if time < SHORTEST or width is None or long.shape[0] != channels:
        return None
    blocks = length = 16
    while blocks * length < time:
        blocks, length = (blocks, 2 * length) if blocks == length else (2 * blocks, length)
    config = BlockConfig(blocks, length, width, causal)
    capacity = blocks * length
    ours = capacity * (batch * (8 * blocks + 6 * length + AROUND) + 4 * config.lags + AROUND_TAP)
    ours *= WIDTHS[0] // width
    return config if ours < SLOWER * batch * time * 2 * long.shape[1] else None


def _alike(x: Tensor, long: Tensor) -> bool:
    """Whether both have one dtype, or autocast sees to it."""
    one = x.dtype == long.dtype
    return one or (torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, long.dtype))
