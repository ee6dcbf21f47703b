"""TVM's lowering pipeline with two passes more: buffers of one tile are declared as such before TVM compacts buffers, and shared
values become local memory before code generation.

Code generation tells its analyzer the value of every bound variable, and the analyzer substitutes: each level of a chain
of shared values multiplies what is below.  A value in local memory is opaque to it, and LLVM's mem2reg makes it a
register again.
"""

from __future__ import annotations

import math
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import ir, tirx  # noqa: E402
from tvm.s_tir.pipeline import default_s_tir_pipeline  # noqa: E402
from tvm.tirx import compilation_pipeline  # noqa: E402

from tilegen.build import compact  # noqa: E402
from tilegen.expression.walkers import const_int  # noqa: E402
from tilegen.plan.keep import kept  # noqa: E402
from tilegen.schedules.rule import dtype_bytes  # noqa: E402

NAME = "tilegen"
# TVM takes every buffer of a task from a pool on the heap unless told otherwise; only the stack becomes registers.
ON_STACK = {"disable_lower_builtin": tirx.const(True, "bool")}
LARGEST_ON_STACK = 4096
"""Bytes."""


def spilled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with every kept binding as one element of local memory."""
    buffers: dict[Any, Any] = {}
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.Bind, lambda bind: found.append(bind) if kept(bind.value) is not None else None))
    for bind in found:
        buffers[bind.var] = tirx.decl_buffer((1,), str(bind.var.ty.dtype), name=bind.var.name, scope="local")
    if not buffers:
        return func

    def sequence(stmt: Any) -> Any:
        if not any(isinstance(child, tirx.Bind) and child.var in buffers for child in stmt.seq):
            return stmt
        children: list[Any] = []
        for child in stmt.seq:
            if isinstance(child, tirx.Bind) and child.var in buffers:
                buffer = buffers[child.var]
                children += [tirx.AllocBuffer(buffer, annotations=ON_STACK), tirx.BufferStore(buffer, kept(child.value), [0])]
            else:
                children.append(child)
        return tirx.SeqStmt(children)

    def on_stack(alloc: Any) -> Any:
        extents = [const_int(n) for n in alloc.buffer.shape]
        static = [n for n in extents if n is not None and n > 0]
        small = len(static) == len(extents) and math.prod(static) * dtype_bytes(str(alloc.buffer.dtype)) <= LARGEST_ON_STACK
        return tirx.AllocBuffer(alloc.buffer, annotations={**alloc.annotations, **ON_STACK}) if small else alloc

    body = tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, on_stack))
    body = tvm_ffi.structural_map(body, (tirx.SeqStmt, sequence))
    return func.with_body(tvm_ffi.structural_map(body, (ir.Var, lambda var: buffers[var][0] if var in buffers else var)))


@tirx.transform.prim_func_pass(opt_level=0)
def SpillKept(func: tirx.PrimFunc, mod: tvm.IRModule, context: Any) -> tirx.PrimFunc:
    """See `spilled`."""
    return spilled(func)


def _factory() -> tuple[Any, Any, Any]:
    body, host, device = default_s_tir_pipeline()
    return tvm.transform.Sequential([*compact.PASSES, body, SpillKept]), host, device


compilation_pipeline.register_tir_pipeline(NAME, _factory)


def compile(mod: tvm.IRModule, target: Any) -> Any:
    """Machine code for a scheduled module."""
    # TVM's elimination of common subexpressions binds casts of indices to floats, on which its analyzer dies; LLVM has its own.
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_cse_tir": True}):
        return tvm.compile(mod, target=target, tir_pipeline=NAME)
