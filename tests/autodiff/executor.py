"""Compiles TE graphs unscheduled for LLVM: scans and scatter-adds become serial loops.

The reference lowering for the tests of differentiation, independent of the planner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tvm
from tvm import te, tirx
from tvm.target import Target

from tilegen.expression import logaddexp, maximum, minimum
from tilegen.expression.gather import scatter_spec
from tilegen.expression.ragged import placement
from tilegen.expression.rebuild import replace
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import const_int, substitute, sym, topological, variables

TARGET = Target({"kind": "llvm", "opt-level": 0})
TORCH = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "int32": torch.int32}


def prim_func(arguments: Sequence[te.Tensor], results: Sequence[te.Tensor]) -> Any:
    """One function that computes `results` from `arguments`, all of them parameters in this order."""
    # TVM takes a tensor among the attributes of a stage for one that the stage reads.
    placed = [op.output(0) for op in topological(results) if placement(op.output(0)) is not None]
    plain = {t: te._ffi_api.ComputeOp(t.op.name, t.op.tag, {}, t.op.axis, t.op.body).output(0) for t in placed}
    lowered = replace(results, plain, lambda op, inputs: _lower(op, inputs))
    return te.create_prim_func([*arguments, *lowered])


def build(functions: Mapping[str, Any]) -> Any:
    """A module with the given functions, compiled."""
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    return tvm.compile(tvm.IRModule(named), target=TARGET)


def shape_of(tensor: te.Tensor, sizes: Mapping[str, int] | None = None) -> list[int]:
    """The shape as numbers, with symbolic sizes by name."""
    shape = []
    for extent in tensor.shape:
        if const_int(extent) is None:
            known = {v: tirx.const(sizes[v.name], "int32") for v in variables(extent)}
            extent = sym.Analyzer().simplify(substitute(extent, known))
        shape.append(const_int(extent))
    return shape


def empty(tensor: te.Tensor, sizes: Mapping[str, int] | None = None) -> torch.Tensor:
    """A result buffer full of NaN, so that an element never written is seen."""
    dtype = TORCH[str(tensor.dtype)]
    fill = float("nan") if dtype.is_floating_point else -(1 << 30)
    return torch.full(shape_of(tensor, sizes), fill, dtype=dtype)


def run(
    arguments: Sequence[te.Tensor],
    results: Sequence[te.Tensor],
    values: Sequence[torch.Tensor],
    sizes: Mapping[str, int] | None = None,
) -> list[torch.Tensor]:
    """The results for the given argument values."""
    outputs = [empty(t, sizes) for t in results]
    build({"main": prim_func(arguments, results)})["main"](*[v.contiguous() for v in values], *outputs)
    return outputs


def _lower(op: te.Operation, inputs: list[te.Tensor]) -> te.Tensor | None:
    """A scan or scatter-add as a serial loop; None for anything else."""
    if scan_spec(op) is not None:
        body = _scan_body(op)
    elif scatter_spec(op) is not None:
        body = _scatter_body(op)
    else:
        return None
    out = op.output(0)
    return te.extern([list(out.shape)], inputs, body, name=op.name, dtype=str(out.dtype))


def _nest(statement: Any, loops: Sequence[Any], extents: Sequence[Any], inner: int) -> Any:
    """Serial loops around `statement`, the one numbered `inner` innermost."""
    order = [inner] + [k for k in range(len(loops)) if k != inner]
    for k in order:
        statement = tirx.For(loops[k], tirx.const(0, "int32"), extents[k], tirx.ForKind.SERIAL, statement)
    return statement


def _read(buffer: Any, position: Sequence[Any]) -> Any:
    return buffer[tuple(0 if const_int(n) == 1 else p for n, p in zip(buffer.shape, position, strict=True))]


def _scan_body(op: te.Operation) -> Any:
    spec, roles = scan_spec(op), list(scan_inputs(op))
    shape, dtype, axis = list(op.output(0).shape), str(op.output(0).dtype), spec.axis
    identity = {"sum": 0.0, "logsumexp": float("-inf"), "max": float("-inf"), "min": float("inf")}[spec.kind]
    identity = tirx.const(identity, dtype)
    combine = {"sum": lambda a, b: a + b, "logsumexp": logaddexp, "max": maximum, "min": minimum}[spec.kind]

    def body(ins: Any, outs: Any) -> Any:
        given = dict(zip(roles, ins, strict=True))
        loops = [tirx.Var(f"s{k}", "int32") for k in range(len(shape))]
        t, n = loops[axis], shape[axis]
        moved = lambda v: [v if k == axis else u for k, u in enumerate(loops)]
        at = moved(n - 1 - t if spec.reverse else t)
        previous = moved(n - t if spec.reverse else t - 1)
        start = identity
        if "initial" in given:
            start = given["initial"][tuple(v for k, v in enumerate(loops) if k != axis)]
        state = outs[0][tuple(previous)]
        if spec.exclusive:  # the state before the previous step, stepped once
            state = (_read(given["decay"], previous) * state if "decay" in given else state) + _read(given["x"], previous)
        state = tirx.if_then_else(t > 0, state, start)
        if "reset" in given:
            fresh = given["entry"][tuple(at)] if "entry" in given else identity
            state = tirx.if_then_else(tirx.NE(_read(given["reset"], at), 0), fresh, state)
        if not spec.exclusive:
            if "decay" in given:
                state = _read(given["decay"], at) * state
            state = combine(state, _read(given["x"], at))
        return _nest(tirx.BufferStore(outs[0], state, at), loops, shape, axis)

    return body


def _scatter_body(op: te.Operation) -> Any:
    axis = scatter_spec(op).axis
    shape, dtype = list(op.output(0).shape), str(op.output(0).dtype)
    rows = op.inputs[0].shape[axis]

    def body(ins: Any, outs: Any) -> Any:
        loops = [tirx.Var(f"z{k}", "int32") for k in range(len(shape))]
        clear = _nest(tirx.BufferStore(outs[0], tirx.const(0, dtype), loops), loops, shape, axis)
        loops = [tirx.Var(f"s{k}", "int32") for k in range(len(shape))]
        position = ins[1][
            tuple(0 if const_int(n) == 1 and k != axis else v for k, (n, v) in enumerate(zip(ins[1].shape, loops, strict=True)))
        ]
        to = [position if k == axis else v for k, v in enumerate(loops)]
        add = tirx.BufferStore(outs[0], outs[0][tuple(to)] + ins[0][tuple(loops)], to)
        add = tirx.IfThenElse(tirx.all(position >= 0, position < shape[axis]), add, None)
        extents = [rows if k == axis else n for k, n in enumerate(shape)]
        return tirx.SeqStmt([clear, _nest(add, loops, extents, axis)])

    return body
