"""Packed sequences in narrow floats: values and gradients are within the tolerance rule of the formula on every sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.packed_cases import bounds_of
from tilegen import mechanisms, ops
from tilegen.bench.check import judge, require

LENGTHS = [23, 0, 1, 40]
"""An empty sequence, one token, and none that is a multiple of a tile."""

HEADS = dict.fromkeys(("q", "k", "v"), (1, "T", 2, 16))
SLOTS = {"s": (1, "T", 2, 16)}
CHANNELS = dict.fromkeys(("q", "k", "v"), (1, "T", 5))
ORDERS = dict.fromkeys(("delta", "alpha", "beta", "gamma"), (5, 2))
LOCAL: dict[str, Any] = {"window": 20, "chunk": 16}
MULTIPOLE: dict[str, Any] = {"block": 16, "rank": 2, "levels": 1}
# Shapes of what is cut into sequences ("T" is all tokens), of what all share, options, dtype.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("linear_attention", HEADS, {}, {"chunk": 16}, "bfloat16"),
    ("bounded_memory_attention", HEADS | SLOTS, {}, {"chunk": 16, "normalizer": "none"}, "bfloat16"),
    ("local_attention", HEADS, {}, LOCAL, "bfloat16"),
    ("local_attention", HEADS, {}, LOCAL, "float16"),
    ("fast_multipole_attention", HEADS, {}, MULTIPOLE, "bfloat16"),
    ("elementwise_attention", CHANNELS, {}, {"order": 2}, "float16"),
    ("short_long_conv", {"x": (1, "T", 5)}, {"short": (5, 3), "long": (5, 9)}, {}, "bfloat16"),
    ("ema", {"x": (1, "T", 5)}, ORDERS | {"omega": (5,)}, {}, "bfloat16"),
]


@pytest.mark.parametrize(("name", "rows", "shared", "options", "dtype"), CASES, ids=[f"{case[0]}-{case[4]}" for case in CASES])
def test_each_sequence_is_as_alone(
    name: str, rows: dict[str, Any], shared: dict[str, Any], options: dict[str, Any], dtype: str
) -> None:
    mechanism = mechanisms.get(name)
    config = mechanism.config(**options)
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn([sum(LENGTHS) if n == "T" else n for n in shape], generator=generator) for shape in (rows | shared).values()]

    def packed(*given: Tensor) -> list[Tensor]:
        return [getattr(ops, name)(**dict(zip(rows | shared, given, strict=True)), **options, cu_seqlens=bounds_of(LENGTHS))]

    def alone(*given: Tensor) -> list[Tensor]:
        parts = zip(*[t.split(LENGTHS, 1) for t in given[: len(rows)]], strict=True)
        names = [*rows, *shared]
        # The formula of the convolution has its taps first.
        common = [t.t() if key in ("short", "long") else t for key, t in zip(shared, given[len(rows) :], strict=True)]
        made = [
            mechanism.reference(config, **dict(zip(names, (*part, *common), strict=True)))[0]
            for part in parts
            if part[0].shape[1]
        ]
        return [torch.cat(made, 1)]

    require(judge(packed, alone, [t.to(getattr(torch, dtype)) for t in x]))
