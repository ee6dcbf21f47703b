"""Maps on a GPU: a thread computes `width` neighbouring elements of the last axis, with one load and store each."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import const_int
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.gpu.func import Buffers, Decisions, launch, name
from tilegen.plan.gpu.lanes import Vectors, product, registers, store, unravel
from tilegen.plan.gpu.math import accurate
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu


def lower_map(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Launch a map; decisions: width (elements of a thread), threads (of a block)."""
    width, threads = decisions["width"], decisions["threads"]
    if all(const_int(extent) is not None for extent in kernel.space):
        math = accurate  # parameters: little work, and what is made of them is used at every step of a sequence
    space: list[Any] = list(kernel.space)
    if width > 1:
        last = const_int(space[-1])
        assert last is not None
        space[-1] = last // width
    total = product(space)
    with launch([tirx.floordiv(total + (threads - 1), threads)], threads) as ((block,), thread):
        flat = name("flat", T.Bind(block * threads + thread))
        with T.If(flat < total), T.Then():
            point = [name(f"p{k}", T.Bind(at)) for k, at in enumerate(unravel(flat, space))]
            first = point[-1] if point else None
            if width > 1:
                first = name("first", T.Bind(point[-1] * width))
            memory = Vectors(buffers, first, width, list(zip([*point[:-1], first], kernel.space, strict=True)) if point else [])
            out = [registers(f"out{k}", [width], str(emitted.dtype)) for k, emitted in enumerate(kernel.emits)]
            for lane in range(width):
                own = [*point[:-1], first + lane if lane else first] if point else []
                values = Evaluator(kernel, memory, math, own, None, {})
                for emitted, held in zip(kernel.emits, out, strict=True):
                    T.buffer_store(held, values.at_point(emitted), [lane])
            for emitted, held in zip(kernel.emits, out, strict=True):
                store(buffers[emitted], held, point[:-1] if point else [], first, width)
