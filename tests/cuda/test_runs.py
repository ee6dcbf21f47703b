"""Sums over tiles of memory in runs of neighbours: sixteen bytes a load, many under way, no questions where a tile is there as a whole."""

from __future__ import annotations

import re

import torch

from tests.cuda.emulator import emulated
from tests.cuda.emulator.functions import EmulatedInstance
from tilegen import mechanisms
from tilegen.bench.check import judge, require
from tilegen.mechanisms import Instance

BLOCK, RANK, LEVELS = 16, 4, 5
TILE = BLOCK << 3  # the tokens of the first four levels' tile


def summed(dtype: str) -> tuple[Instance, EmulatedInstance]:
    """Fast multipole attention with levels in two tiles."""
    mechanism = mechanisms.get("fast_multipole_attention")
    instance = Instance(mechanism, mechanism.config(block=BLOCK, rank=RANK, levels=LEVELS), {"D": 32}, dtype)
    return instance, emulated(instance, ("forward",))


def test_levels_of_two_tiles() -> None:
    """At a length that has whole tiles, and ends within a part of a group."""
    instance, functions = summed("bfloat16")
    op = lambda *rows: [functions.run("forward", dict(zip("qkv", rows, strict=True)), ("forward", "reverse"))["y"]]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 2 * TILE + BLOCK + 3, 2, 32, generator=generator).bfloat16() for _ in range(3)]
    require(judge(op, lambda *rows: instance.mechanism.reference(instance.config, *rows), rows, backward=False))


def test_what_is_added_up_is_loaded_sixteen_bytes_at_a_time() -> None:
    text = summed("bfloat16")[1].source
    assert "*(uint4*)(k_ptr" in text and not re.search(r"\bk_ptr\[", text)
