"""Rebuilding a graph with some of its tensors replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import ir, te

from tilegen.errors import ExpressionError
from tilegen.expression.gather import scatter_add, scatter_spec
from tilegen.expression.scan import scan, scan_inputs, scan_spec
from tilegen.expression.stages import with_attrs
from tilegen.expression.walkers import Expr, is_load, load_indices, load_tensor, rewrite, same_tensor, topological

Change = Callable[[Any, list[Any]], Any]
"""Makes the tensor of an operation from its new inputs; None to rebuild it as it is."""


def replace(
    outputs: Sequence[te.Tensor], mapping: Mapping[te.Tensor, te.Tensor], change: Change | None = None
) -> list[te.Tensor]:
    """`outputs` with the tensors of `mapping` replaced; only what depends on them is built anew.

    `change` may make other operations than those of the graph (a lowered scan); it is asked for every one.
    """
    done = dict(mapping)
    for op in topological(outputs):
        for k in range(op.num_outputs):
            tensor = op.output(k)
            if tensor in done:
                continue
            inputs = [done.get(x, x) for x in _inputs(op)]
            new = change(op, inputs) if change is not None else None
            touched = any(not same_tensor(a, b) for a, b in zip(inputs, _inputs(op), strict=True))
            done[tensor] = new if new is not None else rebuilt(op, k, done, inputs) if touched else tensor
    return [done[tensor] for tensor in outputs]


def _inputs(op: te.Operation) -> list[te.Tensor]:
    return list(op.inputs if isinstance(op, te.ExternOp) else op.input_tensors)


def rebuilt(op: te.Operation, k: int, done: Mapping[te.Tensor, te.Tensor], inputs: list[te.Tensor]) -> te.Tensor:
    """Output `k` of `op` over the tensors in `done`; `inputs` are those of an external operation."""
    if isinstance(op, te.ComputeOp):

        def swap(call: Expr) -> Expr:
            return done.get(load_tensor(call), load_tensor(call))(*load_indices(call)) if is_load(call) else call

        body = [rewrite(b, ir.Call, swap) for b in op.body]
        return te._ffi_api.ComputeOp(op.name, op.tag, op.attrs, op.axis, body).output(k)
    spec = scan_spec(op)
    if spec is not None:
        roles = dict(zip(scan_inputs(op), inputs, strict=True))
        tensor = scan(**roles, axis=spec.axis, kind=spec.kind, reverse=spec.reverse, exclusive=spec.exclusive, name=op.name)
    elif (scatter := scatter_spec(op)) is not None:
        size = op.output(0).shape[scatter.axis]
        tensor = scatter_add(*inputs, axis=scatter.axis, size=size, unique=scatter.unique, name=op.name)
    else:
        raise ExpressionError(f"'{op.name}' is an external operation that is neither a scan nor a scatter-add")
    return with_attrs(tensor, dict(op.attrs))
