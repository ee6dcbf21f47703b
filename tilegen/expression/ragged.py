"""The axes of a packed graph: what each runs over, how long it is, and the tables that say where sequences lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, sym, te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression.scalars import const
from tilegen.expression.stages import compute, placeholder
from tilegen.expression.walkers import Expr, const_int, find, prim, variables

BATCH, POSITIONS = "batch", 1
"""Kinds of axes besides chunks, whose kind is their length; a position is a chunk of length one."""

Kind = Any
Table = dict[str, te.Tensor]


@dataclass
class Place:
    """The sequence that a stage computes for at one of its points."""

    sequence: Expr
    owner: int | None  # the kind of axis that names the sequence, None for the sequence axis itself
    index: Any  # the variable along that axis


class RaggedAxes:
    """Sizes, kinds of axes and tables of one packed graph."""

    def __init__(self, batch: Any, time: Any, sequences: Any) -> None:
        self.batch, self.time, self.sequences = batch, time, sequences
        self.tables: dict[int, Table] = {}
        self.counts: dict[int, Any] = {POSITIONS: time}
        self.columns: dict[tuple[str, int, int], te.Tensor] = {}
        self.ana = sym.Analyzer()

    # ---- kinds of axes

    def kind(self, extent: Expr, name: str) -> Kind:
        """What an axis of this extent runs over; None for anything that has nothing to do with batch or time."""
        used = variables(extent)
        if not any(v.same_as(self.time) or v.same_as(self.batch) for v in used):
            return None
        if isinstance(extent, ir.Var):
            return POSITIONS if extent.same_as(self.time) else BATCH
        for division in find(extent, lambda e: isinstance(e, prim.FloorDiv)):
            length = const_int(division.b)
            if length and self.ana.can_prove(extent == tirx.floordiv(self.time + (length - 1), length)):
                return length
        raise ExpressionError(
            f"stage '{name}' has an axis of extent {extent}: a packed graph has axes of positions (T) and of chunks (ceildiv(T, C)) only"
        )

    def kinds(self, tensor: te.Tensor) -> list[Kind]:
        return [self.kind(n, tensor.op.name) for n in tensor.shape]

    def extent(self, kind: Kind, extent: Expr, timed: bool) -> Expr:
        """The packed extent of an axis; `timed` says whether the tensor has positions."""
        if kind == BATCH:
            return tirx.const(1, "int32") if timed else self.sequences
        return extent if kind is None else self.count(kind)

    def count(self, kind: int) -> Any:
        return self.counts.setdefault(kind, tirx.Var(f"N{kind}", "int32"))

    def shape(self, extents: Sequence[Expr], kinds: Sequence[Kind]) -> list[Expr]:
        timed = any(isinstance(k, int) for k in kinds)
        return [self.extent(k, n, timed) for k, n in zip(kinds, extents, strict=True)]

    # ---- tables

    def table(self, kind: int) -> Table:
        if kind not in self.tables:
            what = "positions" if kind == POSITIONS else f"chunks_of_{kind}"
            sizes = {"starts": self.sequences, "ends": self.sequences, "owner": self.count(kind)}
            self.tables[kind] = {role: placeholder((n,), "int32", f"{role}_of_{what}") for role, n in sizes.items()}
        return self.tables[kind]

    def owner_of(self, kind: int, index: Expr) -> Expr:
        return self.table(kind)["owner"](index)

    def column(self, role: str, of: int, owner: int) -> te.Tensor:
        """For every chunk of length `owner`, where its sequence starts or ends among the chunks of length `of`."""
        key = (role, of, owner)
        if key not in self.columns:
            bounds = self.table(of)[role]

            def body(n: Any) -> Expr:
                s = self.owner_of(owner, n)
                return tirx.if_then_else(tirx.all(s >= 0, s < self.sequences), bounds(s), const(0, "int32"))

            self.columns[key] = compute((self.count(owner),), body, f"{role}_{of}_{owner}")
        return self.columns[key]

    def bound(self, role: str, of: int, place: Place) -> Expr:
        if place.owner is None:
            return self.table(of)[role](place.index)
        return self.column(role, of, place.owner)(place.index)

    def length(self, of: int, place: Place) -> Expr:
        return self.bound("ends", of, place) - self.bound("starts", of, place)
