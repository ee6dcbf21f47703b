"""The scan primitive: a running reduction along one axis, the one thing TE cannot say well.

A scan is a ``te.extern`` operation whose attributes carry its parameters, so that it takes part in a
TE graph like any other stage.  Its body is never compiled: the planner lowers scans itself
(`tilegen.plan`), and `tilegen.autodiff` differentiates them into reverse scans.

Inclusive, with identity ``e`` and combine ``+`` of the kind::

    y[t] = decay[t] * y[t-1] + x[t]          kind "sum"          y[-1] = initial or 0
    y[t] = log(exp(y[t-1]) + exp(x[t]))      kind "logsumexp"    y[-1] = initial or -inf
    y[t] = min(y[t-1], x[t])                 kind "min", "max"   y[-1] = initial or +-inf

An exclusive scan of kind "sum" returns the state *before* token t: ``y[t+1] = decay[t] * y[t] + x[t]``,
``y[0] = initial or 0``.  ``reverse=True`` runs from the end of the axis.  Where ``reset[t] != 0`` the
carried state is replaced by ``entry[t]``, or by the identity (not by ``initial``), before token t is added: packed sequences.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from tvm import te, tirx

from tilegen.errors import ExpressionError

Kind = Literal["sum", "logsumexp", "min", "max"]
ATTR = "tilegen.scan"
ROLES = ("decay", "initial", "reset", "entry")


@dataclass(frozen=True)
class ScanSpec:
    """The parameters of a scan operation; ``decay``, ``initial``, ``reset``, ``entry`` say which inputs follow ``x``."""

    kind: Kind
    axis: int
    reverse: bool = False
    exclusive: bool = False
    decay: bool = False
    initial: bool = False
    reset: bool = False
    entry: bool = False


def scan_spec(op: te.Operation) -> ScanSpec | None:
    """The spec of a scan operation, or None when `op` is something else."""
    if not isinstance(op, te.ExternOp) or ATTR not in op.attrs:
        return None
    return ScanSpec(**json.loads(op.attrs[ATTR]))


def scan_inputs(op: te.Operation) -> dict[str, te.Tensor]:
    """The inputs of a scan operation by role: always "x", then those of `ROLES` it has."""
    spec = scan_spec(op)
    roles = ["x"] + [role for role in ROLES if getattr(spec, role)]
    return dict(zip(roles, op.inputs, strict=True))


def scan(
    x: te.Tensor,
    *,
    axis: int,
    kind: Kind = "sum",
    decay: te.Tensor | None = None,
    initial: te.Tensor | None = None,
    reset: te.Tensor | None = None,
    entry: te.Tensor | None = None,
    reverse: bool = False,
    exclusive: bool = False,
    name: str = "scan",
) -> te.Tensor:
    """Running reduction of `x` along `axis`; shape and dtype are those of `x`.

    Parameters
    ----------
    decay : same rank as `x`; an extent is that of `x` or 1 (broadcast inside).  Kind "sum" only.
    initial : the shape of `x` without `axis`, the state before the first token.
    reset : int32, same rank as `x`, an extent is that of `x` or 1; nonzero where a new sequence starts.
    entry : the shape of `x`, read where a new sequence starts: its state before that.  Has no gradient.
    """
    rank = len(x.shape)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis < rank:
        raise ExpressionError(f"scan '{name}': axis {axis} is outside the {rank} axes of '{x.op.name}'")
    if kind not in ("sum", "logsumexp", "min", "max"):
        raise ExpressionError(f"scan '{name}': kind is {kind!r}, must be 'sum', 'logsumexp', 'min' or 'max'")
    if kind != "sum" and (decay is not None or exclusive):
        raise ExpressionError(f"scan '{name}': decay and exclusive belong to kind 'sum', not to {kind!r}")
    for role, tensor, want in (("decay", decay, rank), ("reset", reset, rank), ("entry", entry, rank), ("initial", initial, rank - 1)):
        if tensor is not None and len(tensor.shape) != want:
            raise ExpressionError(f"scan '{name}': {role} has {len(tensor.shape)} axes, must have {want}")
    if entry is not None and reset is None:
        raise ExpressionError(f"scan '{name}': entry is given without reset, which says where it is read; give both")
    for role, tensor in (("decay", decay), ("initial", initial), ("entry", entry)):
        if tensor is not None and str(tensor.dtype) != str(x.dtype):
            raise ExpressionError(f"scan '{name}': {role} is {tensor.dtype}, x is {x.dtype}; cast one of them")
    spec = ScanSpec(kind, axis, reverse, exclusive, decay is not None, initial is not None, reset is not None, entry is not None)
    inputs = [x] + [tensor for tensor in (decay, initial, reset, entry) if tensor is not None]
    attrs = {ATTR: json.dumps(asdict(spec))}
    no_body = lambda ins, outs: tirx.Evaluate(0)
    return te.extern([list(x.shape)], inputs, no_body, name=name, dtype=str(x.dtype), attrs=attrs)
