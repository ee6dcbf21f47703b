"""Every decision a rule offers gives the same numbers; what it does not offer is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
from tvm import s_tir

from tests.plan.graphs import aligned, both, chunked, elementwise
from tilegen.build import pipeline
from tilegen.build.scheduled import MATH
from tilegen.build.target import resolve
from tilegen.errors import ScheduleError
from tilegen.schedules.llvm.lanes import TASKS_PER_CORE, USUAL_BATCH, lane_candidates, tile_candidates
from tilegen.schedules.registry import by_name, rule_for
from tilegen.schedules.rule import Fixed, Machine, View


def scheduled(function, decide):
    target = resolve()
    sch = s_tir.Schedule(tvm.IRModule({"main": function.prim_func(MATH["llvm"])}), debug_mask=0)
    for kernel in function.kernels:
        view = View(sch, kernel.name, target.machine)
        rule_for(view, "llvm").apply(view, decide)
    return pipeline.compile(sch.mod, target.tvm)


def compute(lib, function, shapes):
    rng = np.random.default_rng(0)
    arrays = {}
    for arg in function.args:
        shape = shapes[arg.name]
        values = rng.standard_normal(shape) if arg.role == "input" else np.full(shape, np.nan)
        arrays[arg.name] = aligned(values.astype("float32"))
    lib["main"](*arrays.values())
    return arrays["y"]


@pytest.mark.parametrize("decisions", itertools.islice(itertools.product([16, 64], [64, 128], [1, 8, 32]), 0, None, 3), ids=str)
def test_every_walk_gives_the_same_result(decisions):
    function = both(elementwise("float32", 128))["forward"]
    shapes = dict.fromkeys("qkvy", (2, 37, 128))
    want = compute(scheduled(function, Fixed()), function, shapes)
    np.testing.assert_allclose(compute(scheduled(function, Fixed(decisions)), function, shapes), want, rtol=1e-5, atol=1e-6)


def test_a_decision_the_rule_does_not_offer_is_refused():
    function = both(elementwise("float32", 64))["forward"]
    with pytest.raises(ScheduleError, match="'lanes' is 7, must be one of"):
        scheduled(function, Fixed([7]))


@pytest.mark.parametrize(("instance", "rules"), [(elementwise("float32"), ["llvm.walk"]), (chunked("float32"), ["llvm.tile"])])
def test_rule_by_pattern(instance, rules):
    function = both(instance)["forward"]
    sch = s_tir.Schedule(tvm.IRModule({"main": function.prim_func()}), debug_mask=0)
    found = [rule_for(View(sch, k.name, Machine()), "llvm").name for k in function.kernels]
    assert found == rules
    assert [by_name(name).name for name in found] == rules


@pytest.mark.parametrize("extent", [1, 2, 3, 7, 8, 16, 24, 48, 64, 96, 127, 512, 1000])
def test_lanes_and_tiles_always_divide(extent):
    lanes, usual = lane_candidates(extent, 4, Machine(cores=2, vector_bytes=64))
    assert usual in lanes
    assert all(extent % lane == 0 for lane in lanes)
    tiles, usual_tile = tile_candidates(extent, lanes, Machine(cores=2))
    assert usual_tile in tiles
    assert all(extent % tile == 0 and tile % lane == 0 for tile in tiles for lane in lanes)


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_the_default_tile_is_the_longest_that_leaves_every_core_its_tasks(cores):
    machine = Machine(cores=cores, vector_bytes=64)
    tiles, tile = tile_candidates(512, lane_candidates(512, 4, machine)[0], machine)
    tasks = {t: USUAL_BATCH * 512 // t for t in tiles}
    longer = [t for t in tiles if t > tile]
    assert tasks[tile] >= TASKS_PER_CORE * cores or tile == min(tiles)
    assert all(tasks[t] < TASKS_PER_CORE * cores for t in longer)
