"""Packed sequences: bounds that are refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.packed_cases import CASES, bounds_of, call, draw
from tilegen.errors import ArgumentError
from tilegen.ops.elementwise_attention import Config as Elementwise
from tilegen.ops.fast_multipole_attention.op import fast_multipole_attention
from tilegen.ops.local_attention import Config as Local

GOOD = bounds_of([2, 3])
BOUNDS: dict[str, tuple[Any, str]] = {
    "a list": ([0, 2, 5], "cu_seqlens is a list, must be a torch.Tensor; convert it with torch.as_tensor"),
    "int64": (GOOD.long(), r"cu_seqlens has dtype int64, must be int32; cast it with \.to\(torch.int32\)"),
    "no end": (GOOD[:1], r"cu_seqlens has shape \[1\], must be \[S\+1\] for S >= 1 sequences"),
    "two dims": (GOOD[None], r"cu_seqlens has shape \[1, 3\], must be \[S\+1\]"),
    "elsewhere": (GOOD.to("meta"), r"cu_seqlens is on meta, must be on cpu as \w+ is; move it with \.to\(\)"),
}
VALUES = {
    "first": ([1, 2, 5], "cu_seqlens starts with 1, must start with 0"),
    "last": ([0, 2, 4], "cu_seqlens ends with 4, must end with T = 5"),
    "falls": ([0, 4, 2, 5], "cu_seqlens falls from 4 to 2 after sequence 1, must not fall"),
}
names = pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))


@names
@pytest.mark.parametrize("kind", BOUNDS, ids=lambda kind: kind.replace(" ", "-"))
def test_refuses_bounds(name: str, kind: str) -> None:
    case, (bounds, words) = CASES[name], BOUNDS[kind]
    with pytest.raises(ArgumentError, match=words):
        call(case, draw(case, [2, 3], 0), bounds, state=False)


@names
def test_refuses_a_batch(name: str) -> None:
    case = CASES[name]
    x = draw(case, [2, 3], 0)
    batch = {key: torch.cat([value, value]) if key in case.rows else value for key, value in x.items()}
    with pytest.raises(ArgumentError, match=r"has shape \[2, 5, .*\], must be \[1, T, ...\] with cu_seqlens; put all sequences into one row"):
        call(case, batch, GOOD, state=False)


@pytest.mark.parametrize("kind", VALUES)
def test_refuses_values_in_debug_mode(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEGEN_DEBUG", "1")
    bounds, words = VALUES[kind]
    case = CASES["ema"]
    with pytest.raises(ArgumentError, match=words):
        call(case, draw(case, [2, 3], 0), torch.tensor(bounds, dtype=torch.int32), state=False)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.made is not None])
def test_refuses_states_of_another_number_of_sequences(name: str) -> None:
    case = CASES[name]
    x = draw(case, [2, 3], 0)
    fewer = {key: value[:1] if key in case.state else value for key, value in x.items()}
    with pytest.raises(ArgumentError, match=r"has shape \[1(, .*)?\], must be \[S.*\] = \[2.*S=2 from starts_1"):
        call(case, fewer, GOOD, state=True)


def test_a_sequence_too_long_for_the_levels_is_refused_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEGEN_DEBUG", "1")
    q = torch.zeros(1, 40, 2, 4)
    with pytest.raises(ArgumentError, match=r"q has a sequence of 33 tokens, must have at most block 2\^\(levels \+ 1\) = 32"):
        fast_multipole_attention(q, q, q, block=8, rank=2, levels=1, cu_seqlens=bounds_of([7, 33]))


def test_options_that_cannot_be_packed() -> None:
    with pytest.raises(ArgumentError, match="cu_seqlens is given with exact=True"):
        Elementwise(exact=True, packed=True)
    with pytest.raises(ArgumentError, match="lengths is given with cu_seqlens, which tells the lengths already; drop one"):
        Local(window=3, lengths=True, packed=True)
