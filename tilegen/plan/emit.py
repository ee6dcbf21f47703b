"""Kernels as schedulable TIR: one block per loop nest step, with everything pointwise bound to variables inside.

A walk becomes three blocks over the same loops::

    for p in space, t in extent:
        <name>_upd    reduction block over t; its init sets the states, its body advances them all at once
        <name>_emit   copies what is written at every point
    for p in space:
        <name>_end    what is left after the last step

States and emitted values are buffers over `space` alone, which compact to one tile after scheduling.  The loops are
scalar and in the order of the tensors; every decision about tiles, vectors and threads is a schedule rule's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

from tvm import ir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.walkers import WIDE, const_int, prim
from tilegen.plan import stages
from tilegen.plan.emit_scatter import emit_scatter
from tilegen.plan.emit_tile import emit_tile
from tilegen.plan.evaluate import Evaluator, MathRule, identity
from tilegen.plan.kernel import Kernel
from tilegen.plan.scope import scope
from tilegen.plan.tiles import TileKernel

Buffers = Mapping[te.Tensor, Any]

PARTIAL = 64
"""Terms that a partial sum of a walk or reduction adds up before it is added to the whole."""

LEVELS = ("part", "block")
"""Partial sums of a reduction, finest first; each adds up `PARTIAL` of the one before."""


def prim_func(
    params: Sequence[tuple[str, te.Tensor]], kernels: Sequence[Kernel], math: MathRule | None = None, name: str = "main"
) -> tirx.PrimFunc:
    """One function of `params` (name, tensor) that runs `kernels` in order."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        buffers = {}
        for param, tensor in params:
            declared = tirx.decl_buffer(list(tensor.shape), str(tensor.dtype), name=param)
            buffers[tensor] = T.arg(param, declared)
        with T.sblock("root"):
            for kernel in kernels:
                # A scope of its own: what a schedule primitive must prove, it proves about this kernel alone.
                with scope(kernel.name):
                    EMITTERS[kernel.pattern](kernel, buffers, math or (lambda expr, bind: expr))
    return builder.get()


def _tile(kernel: Kernel, buffers: Buffers, math: MathRule) -> None:
    assert isinstance(kernel, TileKernel)
    emit_tile(kernel, buffers, math)


def _loops(kernel: Kernel, extents: Sequence[Any], body: Callable[[list[Any]], None]) -> None:
    """Nested scalar loops; extents of 1 keep their loop, so that every rule finds the same nest."""
    with ExitStack() as stack:
        if extents:
            frame = stack.enter_context(T.grid(*extents))
            loops = [frame] if isinstance(frame, ir.Var) else list(frame)
        else:
            loops = []
        body(loops)


def _axes(extents: Sequence[Any], loops: Sequence[Any], kinds: str) -> list[Any]:
    make = {"S": T.axis.spatial, "R": T.axis.reduce}
    return [make[k](n, loop) for k, n, loop in zip(kinds, extents, loops, strict=True)]


def _store(buffer: Any, value: Any, indices: Sequence[Any]) -> None:
    T.buffer_store(buffer, value, list(indices))


def _local(name: str, shape: Sequence[Any], dtype: str) -> Any:
    buffer = T.sblock_alloc_buffer(list(shape) or [1], dtype)
    IRBuilder.name(name, buffer)
    return buffer


def _walk(kernel: Kernel, buffers: Buffers, math: MathRule) -> None:
    space, rank = kernel.space, len(kernel.space)
    state = {a: _local(f"{kernel.name}_state{k}", space, str(a.dtype)) for k, a in enumerate(kernel.anchors)}
    # Emitted values wait in the wide dtype: TVM miscompiles local buffers of bfloat16 on CPUs.
    out = {e: _local(f"{kernel.name}_out{k}", space, wide(e)) for k, e in enumerate(kernel.emits)}
    latches = {t: out[t] if t in out else _local(f"{kernel.name}_last{k}", space, wide(t)) for k, t in enumerate(kernel.latches)}
    kept = {**out, **latches}
    # Long float32 sums go by way of partial ones, which keeps their error near that of a pairwise sum.
    partial = {a: _local(f"{kernel.name}_part{k}", space, "float32") for k, a in enumerate(kernel.anchors) if _is_float32_sum(a)}
    extents = [*space, kernel.extent]

    def at_time(step: Any) -> Any:
        return kernel.extent - 1 - step if kernel.reverse else step

    def full(point: Sequence[Any], step: Any) -> list[Any]:
        return [*point[: kernel.position], at_time(step), *point[kernel.position :]]

    def nest(loops: list[Any]) -> None:
        with T.sblock(f"{kernel.name}_upd"):
            *point, step = _axes(extents, loops, "S" * rank + "R")
            values = Evaluator(kernel, buffers, math, point, at_time(step), {**state, **partial})
            with T.init():
                first = Evaluator(kernel, buffers, math, point, None, {})
                for anchor, buffer in state.items():
                    _store(buffer, first.start(anchor), point)
                for buffer in [*kept.values(), *partial.values()]:
                    _store(buffer, tirx.const(0, str(buffer.dtype)), point)
            values.open_states()
            stores = [(buffer, values.advance(anchor)) for anchor, buffer in values.state.items()]
            stores += [(buffer, widened(values.at_point(emitted), str(buffer.dtype))) for emitted, buffer in kept.items()]
            for buffer, value in stores:
                _store(buffer, value, point)
            _add_partial_sums(state, [partial] if partial else [], step, kernel.extent, point)
        if out:
            with T.sblock(f"{kernel.name}_emit"):
                *point, step = _axes(extents, loops, "S" * (rank + 1))
                for emitted, buffer in out.items():
                    _store(buffers[emitted], buffer[tuple(point)].astype(str(emitted.dtype)), full(point, step))

    _loops(kernel, extents, nest)
    if kernel.finals:
        _finals(kernel, buffers, math, state, latches)


def _add_partial_sums(state: Buffers, partial: Sequence[Buffers], step: Any, extent: Any, point: Sequence[Any], block: int = PARTIAL) -> None:
    """After every block of terms, and after the last one, each partial sum to the next coarser one and the coarsest to the whole."""
    if partial:
        finer, coarser = partial[0], partial[1] if partial[1:] else state
        with T.If(tirx.any(tirx.floormod(step, block) == block - 1, step == extent - 1)), T.Then():
            for anchor, buffer in finer.items():
                _store(coarser[anchor], coarser[anchor][tuple(point)] + buffer[tuple(point)], point)
                _store(buffer, tirx.const(0, "float32"), point)
            _add_partial_sums(state, partial[1:], step, extent, point, block * PARTIAL)


def _is_float32_sum(anchor: te.Tensor) -> bool:
    return stages.kind(anchor) == "reduce" and stages.reduction(anchor) == "sum" and str(anchor.dtype) == "float32"


def wide(tensor: te.Tensor) -> str:
    """The dtype in which a value waits on chip."""
    return WIDE.get(str(tensor.dtype), str(tensor.dtype))


def widened(value: Any, dtype: str) -> Any:
    """`value` in a wider dtype; a rounding that this would undo is left out."""
    if isinstance(value, prim.Cast) and str(value.value.ty.dtype) == dtype:
        return value.value
    return value.astype(dtype)


def _finals(kernel: Kernel, buffers: Buffers, math: MathRule, state: Buffers, latches: Buffers) -> None:
    def nest(loops: list[Any]) -> None:
        with T.sblock(f"{kernel.name}_end"):
            point = _axes(kernel.space, loops, "S" * len(kernel.space))
            values = Evaluator(kernel, buffers, math, point, None, state)
            values.open_states()
            stores = [(buffers[final], values.at_end(final, latches)) for final in kernel.finals]
            for buffer, value in stores:
                _store(buffer, value, point)

    _loops(kernel, kernel.space, nest)


def _map(kernel: Kernel, buffers: Buffers, math: MathRule) -> None:
    def nest(loops: list[Any]) -> None:
        with T.sblock(f"{kernel.name}_emit"):
            point = _axes(kernel.space, loops, "S" * len(kernel.space))
            values = Evaluator(kernel, buffers, math, point, None, {})
            stores = [(buffers[emitted], values.at_point(emitted)) for emitted in kernel.emits]
            for buffer, value in stores:
                _store(buffer, value, point)

    _loops(kernel, kernel.space, nest)


def _reduce(kernel: Kernel, buffers: Buffers, math: MathRule) -> None:
    """Reductions over the same axes in one block; what follows them point by point in a second one."""
    over = stages.reduce_axes(kernel.anchors[0])
    extents = [*kernel.space, *[axis.dom.extent for axis in over]]
    direct = len(kernel.finals) == len(kernel.anchors) == 1 and kernel.finals == kernel.anchors
    state = {
        a: buffers[a] if direct else _local(f"{kernel.name}_state{k}", kernel.space, str(a.dtype))
        for k, a in enumerate(kernel.anchors)
    }
    terms = prod(const_int(axis.dom.extent) or PARTIAL + 1 for axis in over)
    sums = [a for a in kernel.anchors if _is_float32_sum(a) and terms > PARTIAL]
    # Blocks of blocks: what is summed over whole tensors has millions of terms.
    partial = [{a: _local(f"{kernel.name}_{part}{k}", kernel.space, "float32") for k, a in enumerate(sums)} for part in LEVELS if sums]

    def nest(loops: list[Any]) -> None:
        with T.sblock(f"{kernel.name}_upd"):
            rank = len(kernel.space)
            vars_ = _axes(extents, loops, "S" * rank + "R" * len(over))
            point, steps = vars_[:rank], vars_[rank:]
            held = {**state, **(partial[0] if partial else {})}
            values = Evaluator(kernel, buffers, math, point, None, held)
            with T.init():
                for anchor, buffer in [*state.items(), *(item for level in partial for item in level.items())]:
                    _store(buffer, identity(stages.reduction(anchor), str(anchor.dtype)), point)
            if len(state) > 1:
                values.open_states()
            stores = [(buffer, values.reduce_step(anchor, steps)) for anchor, buffer in held.items()]
            for buffer, value in stores:
                _store(buffer, value, point)
            number, count = steps[0], over[0].dom.extent
            for step, axis in zip(steps[1:], over[1:], strict=True):
                number, count = number * axis.dom.extent + step, count * axis.dom.extent
            _add_partial_sums(state, partial, number, count, point)

    _loops(kernel, extents, nest)
    if not direct:
        if kernel.emits:
            raise PlanError(f"kernel '{kernel.name}': a reduction cannot write inside its loops")
        _finals(kernel, buffers, math, state, {})


EMITTERS: dict[str, Callable[[Kernel, Buffers, MathRule], None]] = {
    "walk": _walk,
    "map": _map,
    "reduce": _reduce,
    "tile": _tile,
    "scatter": emit_scatter,
}
