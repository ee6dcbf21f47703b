"""Masks of tiles on GPUs: bands, segments of columns, and loads that are asked about once; results at every kind of boundary."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import sym, tirx

from tests.cuda.emulator import emulated
from tests.cuda.test_emulated_ops import Case, differentiable, draw, formula
from tests.cuda.test_tiles import elements
from tilegen.bench.check import judge, require
from tilegen.expression.walkers import const_int, substitute
from tilegen.plan.gpu import masks, vector
from tilegen.plan.gpu.layout import Layout
from tilegen.plan.gpu.program import Program
from tilegen.plan.plan import plan

HEADS = {"D": 16, "E": 16}
ROW, COLUMN = tirx.Var("row", "int32"), tirx.Var("column", "int32")
LAYOUTS = [
    Layout(64, 80, 4, 1, True),
    Layout(64, 80, 4, 1, True, (16, 32)),
    Layout(128, 192, 4, 1, True, (0, 160)),
    Layout(32, 64, 2, 2, True),
    Layout(16, 48, 1, 4, True),
]
CASES = [
    Case("local_attention", HEADS, {"window": 24}),
    Case("local_attention", HEADS, {"window": 16, "causal": False}),
    Case("local_attention", HEADS, {"window": 20, "kind": "relu2"}),
    Case("fast_multipole_attention", {"D": 16}, {"block": 32, "levels": 2}),
]


@lru_cache
def held_by(found: Layout) -> list[set[tuple[int, int]]]:
    """The places of all elements in each block of columns of any thread."""
    blocks: list[set[tuple[int, int]]] = [set() for _ in range(found.dims[1])]
    for k, place in enumerate(elements(found)):
        blocks[k // (found.dims[2] * found.dims[3]) % found.dims[1]].add(place)
    return blocks


def holds(condition: Any, values: dict[Any, int]) -> bool:
    """Whether a condition is true where its variables have these values."""
    found = sym.Analyzer().simplify(substitute(condition, {v: tirx.const(n, "int32") for v, n in values.items()}))
    return bool(const_int(found))


def scores(window: int, causal: bool = True) -> Layout:
    """The layout of the scores of local attention."""
    kernel = plan(Case("local_attention", {"D": 64, "E": 64}, {"window": window, "causal": causal}).instance("bfloat16"))
    (tile,) = [k for k in kernel.functions["forward"].kernels if k.pattern == "tile"]
    (node,) = [n for n in Program(tile, tile.memory, 4, "bfloat16").steps if n.name == "A"]
    assert node.layout is not None
    return node.layout


@pytest.mark.parametrize(("window", "causal"), [(128, True), (24, True), (100, True), (64, False)])
def test_a_warp_holds_what_its_rows_see_and_little_else(window: int, causal: bool) -> None:
    found = scores(window, causal)
    wide = window if causal else 2 * window
    held = set(elements(found))
    assert held >= {(i, j) for i in range(64) for j in range(i, i + wide + 1)}
    assert found.slant is not None
    assert found.slant[1] <= wide + 16 + 15  # the rows of a warp, and what rounding up to blocks of 16 costs


def test_a_tile_that_its_band_fills_is_left_alone() -> None:
    layout = Case("local_attention", HEADS, {"window": 16, "chunk": 16}).instance("bfloat16")
    (tile,) = [k for k in plan(layout).functions["forward"].kernels if k.pattern == "tile"]
    assert all(n.layout is None or n.layout.slant is None for n in Program(tile, tile.memory, 4, "bfloat16").steps)


@settings(deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(-2, 2), st.integers(-2, 2), st.integers(-150, 150), st.booleans(), st.data())
def test_what_a_segment_knows_is_so_for_each_of_its_elements(found, a, b, c, strict, data) -> None:
    first = data.draw(st.integers(0, found.dims[1] - 1))
    end = data.draw(st.integers(first + 1, found.dims[1]))
    left, right = ROW * a + c, COLUMN * b
    known = masks.Domain(found, ROW, COLUMN, first, end).decided(left < right if strict else left <= right)
    mine = set().union(*held_by(found)[first:end])
    truths = {(a * i + c < b * j) if strict else (a * i + c <= b * j) for i, j in mine}
    if isinstance(known, bool):
        assert truths == {known}


def test_segments_end_where_a_comparison_stays_open() -> None:
    """Of sixteen rows and the columns to sixteen after the last: below the diagonal, across it, above it."""
    found = masks.segments(Layout(16, 48, 1, 1, True), [ROW + 16 <= COLUMN], ROW, COLUMN)
    assert found == [(0, 2), (2, 4), (4, 6)]


def test_a_block_asks_once_what_no_row_changes() -> None:
    time, tile = tirx.Var("T", "int32"), tirx.Var("tile", "int32")
    found = Layout(64, 192, 4, 1, True, (0, 144))
    guard = tirx.all(COLUMN >= ROW, COLUMN <= ROW + 128, tile * 64 + COLUMN - 128 < time)
    middle = masks.Domain(found, ROW, COLUMN, 2, 16)
    assumed, (worst,) = middle.assumptions([guard])
    assert masks.Domain(found, ROW, COLUMN, 2, 16, assumed).decided(guard) is True
    at = lambda t, c: holds(worst, {time: t, tile: c})  # noqa: E731
    last = max(j for block in held_by(found)[2:16] for _, j in block)
    edge = 64 + last - 128
    assert (at(edge, 1), at(edge + 1, 1)) == (False, True)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 16), st.integers(-20, 60))
def test_the_worst_row_decides_for_all(first, count, part, c) -> None:
    number = tirx.Var("number", "int32")
    rows = range(first, first + count)
    for condition in (
        number + tirx.floordiv(ROW, part) * part >= c,
        number * 4 + ROW < c,
        number - tirx.floormod(ROW, part) > c,
    ):
        worst = masks.worst(condition, ROW, rows)
        for n in range(-30, 60, 7):
            assert holds(worst, {number: n}) == all(holds(condition, {number: n, ROW: r}) for r in rows)


def test_a_list_of_tensors_is_cut_where_the_next_begins() -> None:
    near, far, last = (tirx.decl_buffer([64], "float32", name=name) for name in ("near", "far", "last"))
    zero = tirx.const(0, "float32")
    beyond = tirx.if_then_else(12 <= ROW, last[(ROW,)], far[(ROW,)])
    listed = tirx.if_then_else(ROW < 8, tirx.if_then_else(ROW > 2, near[(ROW,)], zero), beyond)
    assert vector.cuts(listed, ROW, 16) == [8, 12]
    assert vector.cuts(listed, ROW, 12) == [8]


@pytest.mark.parametrize("time", [1, 15, 63, 64, 65, 88, 89, 129])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_end_at_any_place_of_a_tile(case: Case, time: int) -> None:
    instance = case.instance("bfloat16")
    inputs = draw(instance, Case(case.op, case.static, case.options, {"B": 1, "H": 1}), time)
    op = differentiable(emulated(instance, ("forward", "backward")))
    require(judge(op, formula(instance, list(inputs)), list(inputs.values()), backward=time > 1))
