"""One stage may have several objects: every ``op.output(0)`` is another.  What is compared is the stage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.expression import placeholder
from tilegen.expression.ragged import Placement, placement
from tilegen.plan.emit_tile import TileEmitter
from tilegen.plan.frames import Frame
from tilegen.plan.gpu.lanes import Vectors
from tilegen.plan.gpu.walk_reads import Reads


def other(tensor: te.Tensor) -> te.Tensor:
    """Another object of the same stage."""
    found = tensor.op.output(0)
    assert not found.same_as(tensor)
    assert found in {tensor}
    return found


def test_a_tile_that_is_read_at_another_place_is_not_aligned() -> None:
    source = te.compute((4, 8), lambda b, i: tirx.Cast("float32", b + i), name="source")
    shifted = te.compute((4, 8), lambda b, i: source[3 - b, i], name="shifted")
    straight = te.compute((4, 8), lambda b, i: source[b, i], name="straight")
    aligned = lambda tensor, read: TileEmitter._aligned(SimpleNamespace(rank=1), tensor, read)  # type: ignore[arg-type]
    for read in (source, other(source)):
        assert aligned(straight, read)
        assert not aligned(shifted, read)


def test_elements_are_located_by_the_stage_of_their_table() -> None:
    first, count = placeholder((3,), "int32", "first"), placeholder((3,), "int32", "count")
    made = Placement(other(first), other(count), 16, "tile")
    placing = te.compute((40,), lambda t: first[0] + t, name="placing", attrs=made.attrs())
    assert placement(placing) is not None
    element, task = tirx.Var("e", "int32"), tirx.Var("o", "int32")
    frame = Frame([3], [(0, 16)], ragged={0: Placement(first, count, 16, "tile")})
    found = frame.located(placing, element, [task], [tirx.Var("i", "int32")], {0: element})
    assert found is not None
    assert found.same_as(task)


@pytest.mark.parametrize("steady", [False, True])
def test_a_walk_follows_a_tensor_whose_windows_all_move(steady: bool) -> None:
    x, reads = placeholder((8, 4), "float32", "x"), Reads(lane=None, width=1, reverse=False)
    reads.record(other(x), (("step", 0), ("point", 1)))
    if steady:
        reads.record(x, (("point", 0), ("point", 1)))
    assert reads.follows(other(x)) == reads.follows(x) == (not steady)


def test_what_a_thread_has_loaded_is_not_loaded_again() -> None:
    x = placeholder((8, 64), "float32", "x")
    with IRBuilder(), T.prim_func(s_tir=False):
        T.func_name("main")
        lane = tirx.Var("lane", "int32")
        loads = Vectors({x: T.arg("x", tirx.decl_buffer([8, 64], "float32", name="x"))}, lane, 4, [(lane, 60)])
        for tensor in (x, other(x)):
            for k in range(4):
                loads[tensor][tirx.const(3, "int32"), lane + k]
        assert len(loads.loaded) == 1
