"""Reads at data-dependent positions and their adjoint, the deterministic scatter-add.

A gather is an ordinary stage with a guarded read, ``y[.., m, ..] = x[.., index[.., m, ..], ..]``; it is zero
where the index lies outside.  A scatter-add cannot be said in TE, so it is a ``te.extern`` operation whose
attribute `ATTR` holds ``{"axis": int, "unique": bool}`` as JSON, with the inputs ``(updates, index)``::

    y[.., n, ..] = sum over m with index[.., m, ..] = n of updates[.., m, ..]        n along `axis`

The shape of the result is that of `updates` except along `axis`.  `index` is int32 with the rank of `updates`;
an extent of it is that of `updates` or 1 (broadcast inside), along `axis` always that of `updates`.  An index
outside the result contributes nothing.  ``unique`` promises that no index occurs twice for the same other
coordinates: the additions may then run in any order and in parallel; otherwise they run in the order of m.
Its body is never compiled: the planner lowers it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tvm import te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression.scalars import const
from tilegen.expression.stages import compute
from tilegen.expression.walkers import const_int, same_shape

ATTR = "tilegen.scatter"
UNIQUE = {"index": "unique"}
"""The attribute of a gathering stage whose data-dependent indices are distinct."""


@dataclass(frozen=True)
class ScatterSpec:
    """The parameters of a scatter-add operation."""

    axis: int
    unique: bool = False


def scatter_spec(op: te.Operation) -> ScatterSpec | None:
    """The spec of a scatter-add operation, or None when `op` is something else."""
    if not isinstance(op, te.ExternOp) or ATTR not in op.attrs:
        return None
    return ScatterSpec(**json.loads(op.attrs[ATTR]))


def gather(x: te.Tensor, index: te.Tensor, *, axis: int, unique: bool = False, name: str = "gather") -> te.Tensor:
    """``y[.., m, ..] = x[.., index[.., m, ..], ..]`` along `axis`; zero where the index lies outside `x`.

    Parameters
    ----------
    index : int32, the rank of `x`; other extents than that of `axis` are those of `x` or 1 (broadcast inside).
    unique : whether no row of `x` is read twice; the adjoint then needs no order of additions.
    """
    axis, rank = _axis("gather", name, x, axis), len(x.shape)
    _check_index("gather", name, x, index, axis, along=False)
    shape = [index.shape[k] if k == axis else n for k, n in enumerate(x.shape)]

    def body(*i: Any) -> Any:
        position = index(*_broadcast(index, i, axis))
        inside = tirx.all(position >= 0, position < x.shape[axis])
        row = x(*[position if k == axis else i[k] for k in range(rank)])
        return tirx.if_then_else(inside, row, const(0, str(x.dtype)))

    return compute(shape, body, name, attrs=UNIQUE if unique else None)


def scatter_add(
    updates: te.Tensor, index: te.Tensor, *, axis: int, size: Any, unique: bool = False, name: str = "scatter"
) -> te.Tensor:
    """Rows of `updates` added up at the positions `index` along `axis` of a zero tensor with `size` rows."""
    axis = _axis("scatter_add", name, updates, axis)
    _check_index("scatter_add", name, updates, index, axis, along=True)
    shape = [size if k == axis else n for k, n in enumerate(updates.shape)]
    attrs = {ATTR: json.dumps(asdict(ScatterSpec(axis, unique)))}
    no_body = lambda ins, outs: tirx.Evaluate(0)
    return te.extern([shape], [updates, index], no_body, name=name, dtype=str(updates.dtype), attrs=attrs)


def _axis(what: str, name: str, tensor: te.Tensor, axis: int) -> int:
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        raise ExpressionError(f"{what} '{name}': axis {axis} is outside the {rank} axes of '{tensor.op.name}'")
    return axis % rank


def _check_index(what: str, name: str, tensor: te.Tensor, index: te.Tensor, axis: int, along: bool) -> None:
    if str(index.dtype) != "int32":
        raise ExpressionError(f"{what} '{name}': index is {index.dtype}, must be int32; cast it")
    if len(index.shape) != len(tensor.shape):
        raise ExpressionError(f"{what} '{name}': index has {len(index.shape)} axes, must have {len(tensor.shape)}")
    for k, (n, m) in enumerate(zip(index.shape, tensor.shape, strict=True)):
        if (k != axis and const_int(n) == 1) or (k == axis and not along):
            continue
        if not same_shape([n], [m]):
            raise ExpressionError(f"{what} '{name}': index has extent {n} along axis {k}, must be {m}")


def _broadcast(index: te.Tensor, i: tuple[Any, ...], axis: int) -> list[Any]:
    """The position in `index` that belongs to element `i`."""
    return [0 if const_int(n) == 1 and k != axis else v for k, (n, v) in enumerate(zip(index.shape, i, strict=True))]
