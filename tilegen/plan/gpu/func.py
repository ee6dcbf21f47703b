"""One function that launches the kernels of a plan on a GPU, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.plan.evaluate import MathRule
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

Buffers = Mapping[te.Tensor, Any]
Decisions = Mapping[str, int]
Lowering = Callable[[Any, Buffers, Decisions, Gpu, MathRule], None]
"""``lower(kernel, buffers, decisions, gpu, math)`` emits one kernel launch into the function being built."""

WARP = 32
LAUNCHES = "tilegen.launches"
"""Attribute of a function: how many launches each kernel of its plan became."""

_launched: ContextVar[list[int]] = ContextVar("launches of the kernel being lowered")


def device_func(
    params: Sequence[tuple[str, te.Tensor]],
    kernels: Sequence[tuple[Kernel, Decisions]],
    gpu: Gpu,
    math: MathRule | None = None,
    name: str = "main",
) -> tirx.PrimFunc:
    """One host function of `params` (name, tensor) that launches `kernels`, each with its decisions, in order."""
    from tilegen.plan.gpu.lowerings import LOWERINGS

    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        buffers = {}
        for param, tensor in params:
            declared = tirx.decl_buffer(list(tensor.shape), str(tensor.dtype), name=param)
            buffers[tensor] = T.arg(param, declared)
        counts = []
        for kernel, decisions in kernels:
            token = _launched.set([0])
            LOWERINGS[kernel.pattern](kernel, buffers, decisions, gpu, math or (lambda expr, bind: expr))
            counts.append(_launched.get()[0])
            _launched.reset(token)
    return builder.get().with_attr(LAUNCHES, counts)


@contextmanager
def launch(blocks: Sequence[Any], threads: int) -> Iterator[tuple[list[Any], Any]]:
    """A launch over up to three grid axes (x first; y and z at most 65535) of `threads` threads; gives (block indices, thread)."""
    if count := _launched.get(None):
        count[0] += 1
    with ExitStack() as stack:
        at = [stack.enter_context(T.launch_thread(f"blockIdx.{axis}", n)) for axis, n in zip("xyz", blocks, strict=False)]
        yield at, stack.enter_context(T.launch_thread("threadIdx.x", threads))


def name(label: str, value: Any) -> Any:
    """`value` under a readable name in the generated code."""
    IRBuilder.name(label.replace(".", "_"), value)
    return value


def barrier() -> None:
    """All threads of the block meet; shared memory written before is seen after."""
    T.evaluate(T.tvm_storage_sync("shared"))
