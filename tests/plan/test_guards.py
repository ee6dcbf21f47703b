"""What guards protect is read under them and computed outside; buffers of one tile have no other axes."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx

from tilegen import mechanisms
from tilegen.build import compact, library
from tilegen.build.target import resolve
from tilegen.expression.walkers import call_name, const_int, find
from tilegen.mechanisms import Instance
from tilegen.plan.guards import is_read, opened

i = tirx.Var("i", "int32")
x = tirx.decl_buffer((8,), "float32", name="x")
y = tirx.decl_buffer((8,), "float16", name="y")
zero = tirx.const(0, "float32")


def is_exp(expr: Any) -> bool:
    return call_name(expr) == "exp"


def is_guard(expr: Any) -> bool:
    return call_name(expr) == "if_then_else"


def run(expr: Any) -> tuple[Any, list[Any]]:
    """The expression without guards, and the guarded reads by the number in the names that stand for them."""
    values: list[Any] = []

    def bind(name: str, value: Any) -> Any:
        values.append(value)
        return tirx.Var(f"{name}_{len(values) - 1}", str(value.ty.dtype))

    return opened(expr, bind, is_exp), values


def test_a_guarded_function_is_computed_of_a_guarded_read() -> None:
    value, reads = run(tirx.if_then_else(i < 8, tirx.exp(x[i]) + x[i], zero))
    assert not find(value, is_guard)
    assert not find(value, is_read)
    assert len(reads) == 1  # both reads of x[i]
    assert tvm_ffi.structural_equal(reads[0], tirx.if_then_else(i < 8, x[i], zero))


def test_a_read_keeps_every_guard_around_it() -> None:
    """The inner condition reads too: under the outer guard only."""
    inner = tirx.if_then_else(x[i] > zero, tirx.exp(x[i + 1]), zero)
    value, reads = run(tirx.if_then_else(i < 7, inner, zero))
    assert not find(value, is_read)
    guards = [call.args[0] for call in reads]
    assert len(guards) == 2
    assert all(find(guard, lambda e: isinstance(e, ir.Var) and e.same_as(i)) for guard in guards)
    assert not any(find(guard, is_read) for guard in guards)


def test_a_read_at_an_index_that_is_read() -> None:
    at = tirx.decl_buffer((8,), "int32", name="at")
    inner = tirx.if_then_else(at[i] > 0, tirx.exp(x[at[i]]), zero)
    value, reads = run(tirx.if_then_else(i < 7, inner, zero))
    assert not find(value, is_read)
    assert [len(find(read, is_read)) for read in reads] == [1, 1, 1]  # at[i] for the condition, again under it, and x


def test_what_is_read_of_narrow_floats_is_wide() -> None:
    _, reads = run(tirx.if_then_else(i < 8, tirx.exp(y[i].astype("float32")), zero))
    assert [str(read.ty.dtype) for read in reads] == ["float32"]


def test_guards_without_functions_stay() -> None:
    guarded = tirx.if_then_else(i < 8, x[i], zero)
    value, reads = run(guarded + tirx.exp(x[0]))
    assert not reads
    assert len(find(value, is_guard)) == 1


def test_buffers_of_a_tile_have_its_extents_only() -> None:
    mechanism = mechanisms.get("linear_attention")
    instance = Instance(mechanism, mechanism.config(), {"D": 16, "E": 16}, "float32")
    made = library.scheduled_parts(instance, ("forward",), resolve("llvm")).parts
    module = compact.tvm.IRModule(made)
    for step in compact.PASSES:
        module = step(module)
    blocks: list[Any] = []
    shapes: list[list[int | None]] = []
    for func in module.functions.values():
        tvm_ffi.structural_walk(func.body, (compact.s_tir.SBlock, blocks.append))
        tvm_ffi.structural_walk(func.body, (tirx.AllocBuffer, lambda node: shapes.append([const_int(n) for n in node.buffer.shape])))
    assert shapes
    assert all(None not in shape for shape in shapes)
    left = [buffer for block in blocks for buffer in block.alloc_buffers if buffer.scope() == "global"]
    assert not [buffer.name for buffer in left if None in [const_int(n) for n in buffer.shape]]
