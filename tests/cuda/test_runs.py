"""Sums over tiles of memory in runs of neighbours: sixteen bytes a load, many under way, no questions where a tile is there as a whole."""

from __future__ import annotations

import re
from typing import Any

import torch
from tvm import ir, sym, tirx

from tests.cuda.emulator import emulated
from tests.cuda.emulator.functions import EmulatedInstance
from tilegen import mechanisms
from tilegen.bench.check import judge, require
from tilegen.mechanisms import Instance
from tilegen.plan.gpu import vector

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


def guarded_reads(expr: Any, lane: Any) -> list[vector.VectorRead]:
    analyzer = sym.Analyzer()
    analyzer.bind(lane, ir.Range(0, 4))
    found = vector.vector_reads(expr, lane, 4, analyzer, lambda source: True)
    for read in found:
        read.slot = tirx.decl_buffer([4], "float32", name="slot")
    return found


def test_one_read_under_two_conditions_is_there_for_both() -> None:
    """Fetched where either condition holds; where it is added, each condition still says whether it is."""
    memory = tirx.decl_buffer([8, 4], "float32", name="memory")
    e, lane = tirx.Var("e", "int32"), tirx.Var("lane", "int32")
    read, zero = memory[e, lane], tirx.const(0, "float32")
    even = tirx.if_then_else(tirx.floormod(e, 2) == 0, read, zero)
    odd = tirx.if_then_else(tirx.floormod(e, 2) == 1, read, zero)

    (once,) = guarded_reads(even, lane)
    assert not once.several and vector.is_load(vector.unguarded(vector.replaced(even, [once], lane, 0), [once]))
    (both,) = guarded_reads(even + odd, lane)
    assert both.several and [str(g) for g in both.guards] == ["e % 2 == 0 or e % 2 == 1"]
    assert "if_then_else" in str(vector.unguarded(vector.replaced(even, [both], lane, 0), [both]))
    (always,) = guarded_reads(even + read, lane)
    assert not always.guards
    # Where elements of a run differ in whether they have it, none is fetched for others.
    some = tirx.if_then_else(lane < e, read, zero)
    assert guarded_reads(even + some, lane) == guarded_reads(some + even, lane) == []
