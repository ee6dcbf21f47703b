"""What the planner asks of one stage: its kind, its axes, and which tensors it reads where."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from tvm import sym, te, tirx

from tilegen.errors import PlanError
from tilegen.expression.gather import scatter_spec
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import const_int, load_indices, load_tensor, loads
from tilegen.schedules.rule import dtype_bytes

Kind = Literal["input", "map", "reduce", "scan", "scatter"]


@lru_cache(maxsize=1 << 14)
def kind(tensor: te.Tensor) -> Kind:
    """How a stage computes its elements."""
    op = tensor.op
    if isinstance(op, te.PlaceholderOp):
        return "input"
    if scan_spec(op) is not None:
        return "scan"
    if scatter_spec(op) is not None:
        return "scatter"
    if isinstance(op, te.ComputeOp):
        if len(op.body) != 1:
            raise PlanError(f"stage '{op.name}' has several results; give each its own stage")
        return "reduce" if isinstance(op.body[0], tirx.Reduce) else "map"
    raise PlanError(f"stage '{op.name}' is a {type(op).__name__}, which has no lowering; use compute, scan or scatter_add")


def is_anchor(tensor: te.Tensor) -> bool:
    """Whether a stage needs a loop of its own (a reduction, a scan or a scatter-add) and cannot be recomputed where it is read."""
    return kind(tensor) in ("reduce", "scan", "scatter")


def axes(tensor: te.Tensor) -> list[Any]:
    """The axis variables of a map or reduce stage."""
    return [axis.var for axis in tensor.op.axis]


def reduce_axes(tensor: te.Tensor) -> list[Any]:
    """The reduce axes (IterVars) of a reduce stage."""
    return list(tensor.op.body[0].axis)


def body(tensor: te.Tensor) -> Any:
    """The scalar expression of a map stage, or what a reduce stage reduces."""
    expr = tensor.op.body[0]
    return expr.source[0] if isinstance(expr, tirx.Reduce) else expr


def reduction(tensor: te.Tensor) -> str:
    """ "sum", "max" or "min": what a reduce stage does."""
    result = tensor.op.body[0].combiner.result[0]
    return {"Add": "sum", "Max": "max", "Min": "min"}[type(result).__name__]


@lru_cache(maxsize=1 << 14)
def reads(tensor: te.Tensor) -> list[tuple[te.Tensor, list[Any] | None]]:
    """(tensor, indices) of every read of a stage, in its own axis variables; None stands for the own rules of a scan or scatter-add."""
    if kind(tensor) == "scan":
        return [(source, None) for source in scan_inputs(tensor.op).values()]
    if kind(tensor) == "scatter":
        return [(source, None) for source in tensor.op.inputs]
    if kind(tensor) == "input":
        return []
    return [(load_tensor(load), load_indices(load)) for load in loads(body(tensor))]


def element_bytes(tensor: te.Tensor) -> int:
    """Bytes of one element."""
    return dtype_bytes(str(tensor.dtype))


def equal(a: Any, b: Any) -> bool:
    """Whether two integer expressions are provably equal."""
    known = const_int(a), const_int(b)
    if None not in known:
        return known[0] == known[1]
    if hasattr(a, "same_as") and a.same_as(b):
        return True
    return bool(sym.Analyzer().can_prove_equal(a, b))


def same_extents(a: list[Any], b: list[Any]) -> bool:
    """Whether two lists of extents are provably equal."""
    return len(a) == len(b) and all(equal(m, n) for m, n in zip(a, b, strict=True))
