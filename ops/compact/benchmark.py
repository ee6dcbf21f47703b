"""How compaction is measured, and what it must do at least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work

SHARE = 0.25
"""The share of active rows that is measured."""


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads the active rows of x and writes them; two additions a row count places."""
    rows = sizes["B"] * sizes["T"]
    return Work(2 * rows, 2 * SHARE * rows * sizes["C"])


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads the gradients of the packed rows and writes that of x, zeros included."""
    rows = sizes["B"] * sizes["T"]
    return Work(2 * rows, (1 + SHARE) * rows * sizes["C"])


def scattered(config: Any, x: Any, active: Any, room: Any) -> tuple[Any, ...]:
    """With a scatter of whole rows, those that are not active to one behind the last: no look at the device from the host."""
    import torch

    count = active.sum(1)
    before = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    place = torch.where(active, before[:-1, None] + active.cumsum(1) - 1, room.shape[0]).flatten()
    packed = x.new_zeros(room.shape[0] + 1, x.shape[1]).scatter(0, place[:, None].expand_as(x), x)[:-1]
    return packed, before.int()


def fixed(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Which rows are active, always the same ones, and room for all."""
    import torch

    active = torch.rand(sizes["B"], sizes["T"], generator=torch.Generator().manual_seed(1)) < SHARE
    return {"active": active, "room": torch.zeros(sizes["R"], dtype=torch.int32)}


BENCHMARK = Benchmark(
    mechanism="compact",
    options=({},),
    sizes={"B": 4, "T": 2048, "C": 512},
    lengths=(512, 1024, 2048, 4096, 8192),
    peer=scattered,
    forward=forward,
    backward=backward,
    arguments=lambda tensors: (tensors[0].unflatten(0, tensors[1].shape), tensors[1]),
    fixed=fixed,
    derived=lambda sizes: dict.fromkeys("NR", sizes["B"] * sizes["T"]),
)
