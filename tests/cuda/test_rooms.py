"""Tiles that a block has no room for: on a GPU with little shared memory operators keep them in a workspace, and are as right."""

from __future__ import annotations

import dataclasses

import pytest

from tests.cuda.emulator import EmulatedInstance
from tests.cuda.test_emulated_ops import CASES, Case, differentiable, draw, formula
from tilegen.bench.check import judge, require
from tilegen.build import nvcc
from tilegen.build.cuda import kernels
from tilegen.build.library import scheduled_parts
from tilegen.build.target import BuildTarget, resolve

LITTLE = 2048
"""Bytes of shared memory: less than any tile of these cases and more than what is kept of a row."""
TILED = [case for case in CASES if case.op in ("linear_attention", "local_attention")]


def poor(name: str, shared: int) -> BuildTarget:
    """The named target with `shared` bytes of shared memory a block."""
    target = resolve(name)
    return dataclasses.replace(target, machine=dataclasses.replace(target.machine, shared_bytes=shared))


@pytest.mark.parametrize("case", TILED, ids=str)
def test_forward_and_backward(case: Case) -> None:
    instance = case.instance("bfloat16")
    given = draw(instance, case)
    functions = EmulatedInstance(instance, ("forward", "backward"), poor("sm_90", LITTLE))
    assert all(any(arg.name.endswith("_room") for arg in entry.args) for entry in functions.entries.values())
    require(judge(differentiable(functions), formula(instance, list(given)), list(given.values())))


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_wide_heads_in_float32_on_a_card_of_64_kilobytes(function: str) -> None:
    case, target = Case("linear_attention", {"D": 128, "E": 128}), resolve("sm_75")
    made = scheduled_parts(case.instance("float32"), (function,), target)
    rooms = [arg for arg in made.entries[function].args if arg.name.endswith("_room")]
    assert rooms
    assert all(arg.shape[0] == "(B * H)" for arg in rooms)
    found = nvcc.examine(kernels(made.parts, target)[0], "sm_75")
    assert all(one.shared <= 48 << 10 for one in found)


def test_what_fits_has_no_room() -> None:
    made = scheduled_parts(TILED[0].instance("float32"), ("forward", "backward"), resolve("sm_75"))
    assert not any(arg.name.endswith("_room") for entry in made.entries.values() for arg in entry.args)
