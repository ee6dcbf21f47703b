"""A contribution to the adjoint of one tensor, and how contributions become stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.derivative import multiply
from tilegen.expression.stages import compute
from tilegen.expression.walkers import (
    Expr,
    conjunction,
    dtype_of,
    has_load,
    is_load,
    load_indices,
    load_tensor,
    same_shape,
    substitute,
    total,
)


@dataclass
class Term:
    """``scale * sum over axes of body`` where `guards` hold, else 0; all in the variables `target`.

    `scale` and `guards` are applied after the sum and do not depend on `axes`; the body carries whatever
    guards its own reads need.  The body does not depend on the variables in `pinned` either, since `guards` say
    what they must be: the sum is formed once for all their values.
    """

    target: list[Any]
    body: Expr
    axes: list[tuple[Any, Expr]] = field(default_factory=list)
    scale: Expr | None = None
    guards: list[Expr] = field(default_factory=list)
    pinned: list[Any] = field(default_factory=list)

    @property
    def is_bare_sum(self) -> bool:
        """Whether the term is one reduction and nothing else."""
        return bool(self.axes) and self.scale is None and not self.guards and not self.pinned


def guarded(conditions: Sequence[Expr], expr: Expr) -> Expr:
    """`expr` where all conditions hold, else 0; conditions that read tensors are tested after those that do not."""
    reading = [c for c in conditions if has_load(c)]
    if reading and len(reading) < len(conditions):
        return guarded([c for c in conditions if not has_load(c)], guarded(reading, expr))
    condition = conjunction(conditions)
    return expr if condition is None else tirx.if_then_else(condition, expr, tirx.const(0, dtype_of(expr)))


def sum_stage(term: Term, shape: Sequence[Expr], name: str) -> te.Tensor:
    """The reduction of a term as a stage of its own."""
    axes = {v: te.reduce_axis((0, n), v.name) for v, n in term.axes}
    body = substitute(term.body, {v: axis.var for v, axis in axes.items()})
    reduce = te.sum(body, axis=list(axes.values()))
    loose = [k for k, v in enumerate(term.target) if v not in term.pinned]
    if not loose:  # TVM cannot compare tensors without axes
        return compute([1], lambda only: reduce, name)
    target = [term.target[k] for k in loose]
    place = lambda *i: substitute(reduce, dict(zip(target, i, strict=True)))
    return compute([shape[k] for k in loose], place, name, axes=[v.name for v in target])


def accumulate(tensor: te.Tensor, terms: Sequence[Term]) -> te.Tensor:
    """The sum of all terms: every reduction is a stage, everything else is fused into the stage that adds up."""
    name, shape = f"d{tensor.op.name}", list(tensor.shape)
    if len(terms) == 1 and terms[0].is_bare_sum:
        return sum_stage(terms[0], shape, name)
    sums = [sum_stage(term, shape, f"{name}_{k}") if term.axes else None for k, term in enumerate(terms)]

    def value(i: tuple[Any, ...]) -> Expr:
        parts = []
        for term, summed in zip(terms, sums, strict=True):
            here = dict(zip(term.target, i, strict=True))
            loose = [x for x, v in zip(i, term.target, strict=True) if v not in term.pinned]
            part = summed(*(loose or [0])) if summed is not None else substitute(term.body, here)
            if term.scale is not None:
                part = multiply(part, substitute(term.scale, here))
            parts.append(guarded([substitute(g, here) for g in term.guards], part))
        return total(parts)

    return unalias(compute(shape, lambda *i: value(i), name, axes=axis_names(tensor)))


def unalias(tensor: te.Tensor) -> te.Tensor:
    """The tensor that `tensor` is a plain copy of, or itself."""
    body, axes = tensor.op.body[0], [axis.var for axis in tensor.op.axis]
    if is_load(body) and len(load_indices(body)) == len(axes):
        source = load_tensor(body)
        straight = all(i.same_as(v) for i, v in zip(load_indices(body), axes, strict=True))
        if straight and same_shape(source.shape, tensor.shape):
            return source
    return tensor


def axis_names(tensor: te.Tensor) -> list[str]:
    """The names of the axes of `tensor`; i0, i1, ... for an argument."""
    if isinstance(tensor.op, te.ComputeOp):
        return [axis.var.name for axis in tensor.op.axis]
    return [f"i{k}" for k in range(len(tensor.shape))]


def fresh(tensor: te.Tensor) -> list[Any]:
    """New variables that run over the shape of `tensor`, named as its own axes are."""
    return [tirx.Var(name, "int32") for name in axis_names(tensor)]
