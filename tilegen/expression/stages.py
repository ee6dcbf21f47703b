"""Stages of a TE graph: placeholders, computed tensors, reductions, the stop marker."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression.scalars import as_expr
from tilegen.expression.walkers import Expr, const_int, dtype_of, find, is_const

STOP = {"grad": "stop"}
"""The operation attribute that makes a stage a constant for differentiation."""


def placeholder(shape: Sequence[Any], dtype: str, name: str) -> te.Tensor:
    """An argument of the graph."""
    return te.placeholder(_axes(shape, name), dtype, name=name)


def compute(
    shape: Sequence[Any],
    fn: Callable[..., Any],
    name: str,
    attrs: Mapping[str, str] | None = None,
    axes: Sequence[str] | None = None,
) -> te.Tensor:
    """The tensor of `shape` whose element [i, j, ...] is ``fn(i, j, ...)``.

    A reduction (`reduce_sum`, ...) must be the whole of `fn`'s result: put what follows it in a stage of its own.
    The axes are called as the parameters of `fn`, or as `axes` says.
    """
    shape = _axes(shape, name)
    called = list(axes) if axes is not None else _argument_names(fn, len(shape), name)
    variables = [tirx.IterVar((0, n), arg, 0) for arg, n in zip(called, shape, strict=True)]
    body = fn(*[axis.var for axis in variables])
    if isinstance(body, (bool, int, float)):
        raise ExpressionError(f"stage '{name}': the body is the plain number {body!r}; write const({body!r}, dtype)")
    body = as_expr(body)
    reductions = find(body, lambda e: isinstance(e, tirx.Reduce))
    if reductions and not (len(reductions) == 1 and isinstance(body, tirx.Reduce)):
        raise ExpressionError(f"stage '{name}': a reduction is part of a larger expression; make it a stage of its own")
    if reductions:
        check_reduction(body, name)
    return te._ffi_api.ComputeOp(name, "", dict(attrs or {}), variables, [body]).output(0)


def _axes(shape: Sequence[Any], name: str) -> tuple[Any, ...]:
    if not len(shape):
        raise ExpressionError(f"'{name}' has no axes, which TVM cannot handle; give it the shape (1,)")
    return tuple(shape)


def _argument_names(fn: Callable[..., Any], rank: int, name: str) -> list[str]:
    """One name an axis, from the parameters of `fn`; parameters with defaults are not axes."""
    parameters = list(inspect.signature(fn).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return [f"i{k}" for k in range(rank)]
    named = [p.name for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    if len(named) != rank:
        raise ExpressionError(
            f"stage '{name}': the shape has {rank} axes, the body takes {len(named)} indices ({', '.join(named)})"
        )
    return named


def check_reduction(reduce: tirx.Reduce, name: str) -> None:
    """Reject the forms of TVM reductions that its lowering ignores or that have no meaning here."""
    if const_int(reduce.condition) != 1 and not is_const(reduce.condition, 1):
        raise ExpressionError(
            f"stage '{name}': where= of a reduction is ignored by TVM's lowering; "
            "write reduce_sum(if_then_else(condition, x, 0), axis)"
        )
    if len(reduce.init):
        raise ExpressionError(f"stage '{name}': init= of a reduction is not supported; add the initial value in the next stage")
    if len(reduce.source) != 1:
        raise ExpressionError(f"stage '{name}': a reduction of several values at once is not supported; use one stage for each")


def reduce_axis(extent: Any, name: str) -> tirx.IterVar:
    """An axis that runs over 0 <= r < extent inside one reduction."""
    return te.reduce_axis((0, extent), name)


def _reduce(kind: str, expr: Any, axis: Any) -> Expr:
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if not axes or not all(isinstance(a, tirx.IterVar) for a in axes):
        raise ExpressionError(f"reduce_{kind}: axis must be made by reduce_axis(extent, name), or a list of such")
    expr = as_expr(expr)
    if dtype_of(expr) == "bool":
        raise ExpressionError(f"reduce_{kind}: the value is bool; cast it to int32 first")
    return getattr(te, kind)(expr, axis=axes)


def reduce_sum(expr: Any, axis: Any) -> Expr:
    """The sum of `expr` over one reduce axis or a list of them."""
    return _reduce("sum", expr, axis)


def reduce_max(expr: Any, axis: Any) -> Expr:
    """The maximum of `expr` over one reduce axis or a list of them."""
    return _reduce("max", expr, axis)


def reduce_min(expr: Any, axis: Any) -> Expr:
    """The minimum of `expr` over one reduce axis or a list of them."""
    return _reduce("min", expr, axis)


def stop_gradient(tensor: te.Tensor) -> te.Tensor:
    """`tensor` as a constant for differentiation.

    The stage itself is marked and returned (use the result, not the argument); an argument of the graph
    gets one copying stage, since it may be read elsewhere with its gradient.
    """
    op = tensor.op
    if isinstance(op, te.PlaceholderOp):
        return compute(tensor.shape, lambda *i: tensor(*i), name=f"{op.name}_const", attrs=STOP)
    return with_attrs(tensor, STOP)


def with_attrs(tensor: te.Tensor, attrs: Mapping[str, str]) -> te.Tensor:
    """The same stage with more attributes."""
    op = tensor.op
    merged = {**dict(op.attrs or {}), **attrs}
    if isinstance(op, te.ComputeOp):
        rebuilt = te._ffi_api.ComputeOp(op.name, op.tag, merged, op.axis, op.body)
    elif isinstance(op, te.ExternOp):
        rebuilt = te._ffi_api.ExternOp(op.name, op.tag, merged, op.inputs, op.input_placeholders, op.output_placeholders, op.body)
    else:
        raise ExpressionError(f"'{op.name}' is a {type(op).__name__}; only computed stages and scans carry attributes")
    return rebuilt.output(tensor.value_index)


def is_stopped(op: te.Operation) -> bool:
    """Whether `op` is marked as a constant for differentiation."""
    return bool(op.attrs) and op.attrs.get("grad", "") == "stop"
