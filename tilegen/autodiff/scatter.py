"""Adjoint of a read at a data-dependent position: a deterministic scatter-add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.reads import solution, solve
from tilegen.autodiff.simplify import simplify_indices, split_guard
from tilegen.autodiff.solver import Domain
from tilegen.autodiff.term import Term, fresh, guarded
from tilegen.errors import AutodiffError
from tilegen.expression.gather import UNIQUE, scatter_add
from tilegen.expression.printer import text
from tilegen.expression.stages import compute
from tilegen.expression.walkers import Expr, has_load, load_tensor, substitute, variables


def scattered(op: te.ComputeOp, load: Expr, domain: Domain, indices: list[Expr], guards: list[Expr], expr: Expr) -> Term:
    """The contribution through X[.., p, ..] where p reads a tensor: a deterministic scatter-add.

    The other indices are inverted as usual.  Of the variables left free, those in p number the updates, the
    rest are summed before.
    """
    tensor = load_tensor(load)
    data = [k for k, i in enumerate(indices) if has_load(i)]
    if len(data) > 1:
        raise AutodiffError(
            f"stage '{op.name}' reads {text(load)}: {len(data)} indices are data; flatten the axes of "
            f"'{tensor.op.name}' and read it with one index tensor"
        )
    axis = data[0]
    target = fresh(tensor)
    straight = [k for k in range(len(indices)) if k != axis]
    others, shape = [target[k] for k in straight], [tensor.shape[k] for k in straight]
    inverse = solve(op, load, domain, [indices[k] for k in straight], others, shape)
    term = solution(inverse, others, shape, guards, expr, pin=False)
    free = term.axes
    renamed = {old: new for (old, _), (new, _) in zip(inverse.free, free, strict=True)}
    position = substitute(substitute(indices[axis], inverse.solved), renamed)
    position = simplify_indices(position, inverse.analyzer, [*zip(others, shape, strict=True), *free])
    used = set(variables(position))
    counted = [(v, n) for v, n in free if v in used]
    summed = [(v, n) for v, n in free if v not in used]
    inner = {v for v, _ in summed}
    where = [g for g in split_guard(term.body)[0] if not inner & set(variables(g))]
    if not counted:  # one row for each of the other indices: nothing collides
        here = [*where, tirx.EQ(position, target[axis])]
        if not summed:
            return Term(target, guarded(here, split_guard(term.body)[1]))
        return Term(target, term.body, summed, None, here, [target[axis]])
    rows = _Rows(tensor, axis, target, counted)
    updates = rows.updates(term.body, summed)
    index = rows.index(op, position, where)
    unique = bool(op.attrs) and op.attrs.get("index", "") == UNIQUE["index"]
    size = tensor.shape[axis]
    scattered = scatter_add(updates, index, axis=axis, size=size, unique=unique, name=f"d{tensor.op.name}_{op.name}")
    return Term(target, scattered(*target))


@dataclass
class _Rows:
    """The flattened variables `counted` as one axis that takes the place of `axis` of `tensor`."""

    tensor: te.Tensor
    axis: int
    target: list[Any]
    counted: list[tuple[Any, Expr]]

    @property
    def length(self) -> Expr:
        result = self.counted[0][1]
        for _, n in self.counted[1:]:
            result = result * n
        return result

    def shape(self) -> list[Expr]:
        return [self.length if k == self.axis else n for k, n in enumerate(self.tensor.shape)]

    def at(self, i: tuple[Any, ...]) -> dict[Any, Expr]:
        """The variables that belong to element `i` of the flattened shape."""
        here = {v: i[k] for k, v in enumerate(self.target) if k != self.axis}
        row, parts = i[self.axis], {}
        for v, n in reversed(self.counted[1:]):
            parts[v] = tirx.floormod(row, n)
            row = tirx.floordiv(row, n)
        return here | parts | {self.counted[0][0]: row}

    def updates(self, body: Expr, summed: list[tuple[Any, Expr]]) -> te.Tensor:
        axes = {v: te.reduce_axis((0, n), v.name) for v, n in summed}
        inner = {v: axis.var for v, axis in axes.items()}

        def value(*i: Any) -> Expr:
            expr = substitute(body, self.at(i) | inner)
            return te.sum(expr, axis=list(axes.values())) if axes else expr

        return compute(self.shape(), value, f"d{self.tensor.op.name}_rows")

    def index(self, op: te.ComputeOp, position: Expr, guards: list[Expr]) -> te.Tensor:
        """Where every row goes, -1 for nowhere; extent 1 along axes that neither position nor guards depend on."""
        used = set(variables(position)).union(*[variables(g) for g in guards])
        shape = [
            n if k == self.axis or v in used else tirx.const(1, "int32")
            for k, (v, n) in enumerate(zip(self.target, self.shape(), strict=True))
        ]
        nowhere = tirx.const(-1, "int32")

        def value(*i: Any) -> Expr:
            here = self.at(i)
            expr = substitute(position, here)
            for reading in (True, False):  # conditions that read tensors are tested last
                where = [substitute(g, here) for g in guards if has_load(g) == reading]
                if where:
                    expr = tirx.if_then_else(tirx.all(*where), expr, nowhere)
            return expr

        return compute(shape, value, f"{op.name}_rows")
