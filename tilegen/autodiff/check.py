"""Proof that every read is in bounds under the conditions that dominate it.

The proof is part of `gradient` and always on: an unmasked read beyond a tensor's end gives a wrong gradient
now and then, depending on what lies there, and numerical tests miss it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from tilegen.autodiff.ranges import Opaque, analyzer, assume_sizes, conjuncts, holds
from tilegen.errors import ExpressionError
from tilegen.expression.printer import text
from tilegen.expression.walkers import Expr, call_name, children, is_load, load_indices, load_tensor, prim, topological


@dataclass(frozen=True)
class Unproved:
    """A read that is not provably in bounds, with the conditions under which it happens."""

    stage: str
    read: str
    conditions: tuple[str, ...]

    def __str__(self) -> str:
        where = f" where {' and '.join(self.conditions)}" if self.conditions else ""
        return f"stage '{self.stage}' reads {self.read}{where}"


def unproved_reads(outputs: Iterable[te.Tensor], known: Iterable[te.Operation] = ()) -> list[Unproved]:
    """The reads in the graph below `outputs`, without the operations `known`, that cannot be proved in bounds."""
    skipped = set(known)
    found: list[Unproved] = []
    for op in topological(outputs):
        if isinstance(op, te.ComputeOp) and op not in skipped:
            found += _stage(op)
    return found


def require_proved(outputs: Iterable[te.Tensor]) -> None:
    """Raise an `ExpressionError` that names the first read of a graph that cannot be proved in bounds."""
    for unproved in unproved_reads(outputs):
        raise ExpressionError(
            f"{unproved}, which is not provably inside the tensor; "
            "guard it: if_then_else(all_of(index >= 0, index < extent), read, 0)"
        )


def _stage(op: te.ComputeOp) -> list[Unproved]:
    found: list[Unproved] = []
    for body in op.body:
        axes = list(op.axis) + (list(body.axis) if isinstance(body, tirx.Reduce) else [])
        ana = analyzer([(axis.var, axis.dom.extent) for axis in axes])
        opaque = Opaque(ana)

        def visit(expr: Expr, conditions: Sequence[Expr]) -> None:
            if is_load(expr):
                assume_sizes(ana, load_tensor(expr).shape)
                for i, n in zip(load_indices(expr), load_tensor(expr).shape, strict=True):
                    visit(i, conditions)
                    index = opaque(i)
                    if not holds(ana, [index >= 0, index < n], [opaque(c) for c in conditions]):
                        found.append(Unproved(op.name, text(expr), tuple(map(text, conditions))))
                        return
            elif call_name(expr) == "if_then_else":
                condition, then, otherwise = expr.args
                visit(condition, conditions)
                visit(then, [*conditions, *conjuncts(condition)])
                visit(otherwise, [*conditions, tirx.Not(condition)])
            elif isinstance(expr, (prim.And, prim.Or)):  # evaluated from left to right
                visit(expr.a, conditions)
                known = conjuncts(expr.a) if isinstance(expr, prim.And) else [tirx.Not(expr.a)]
                visit(expr.b, [*conditions, *known])
            else:  # of a Select, both branches are evaluated
                for child in children(expr):
                    visit(child, conditions)

        visit(body, [])
    return found
