"""The axes of a packed graph: what each runs over, how long it is, and the tables that say where sequences lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import ir, sym, te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression.scalars import const
from tilegen.expression.scan import scan_spec
from tilegen.expression.stages import compute, placeholder
from tilegen.expression.walkers import Expr, const_int, find, prim, variables

PLACED = "tilegen.placed."
"""The prefix of the attributes of a stage that has a `Placement`."""

TABLE = {"tilegen.table": "1"}
"""The attribute of a stage that is written to memory before anything reads it: its elements are looked up, again and again."""

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


@dataclass(frozen=True)
class Placement:
    """How the tile of an element turns back into the element: what a task must know to write a result tile by tile.

    A stage over positions (or sequences) says for each of them, as `part`, the "tile" it lies in or its "row" there.  Tile n
    holds the elements ``first[n] + i``, i < ``count[n]`` <= `size`.
    """

    first: te.Tensor
    count: te.Tensor
    size: int
    part: Literal["tile", "row"]

    def attrs(self) -> dict[str, Any]:
        """Attributes of a stage, by which `placement` finds this again."""
        return {f"{PLACED}{name}": value for name, value in vars(self).items()}


def placement(tensor: te.Tensor) -> Placement | None:
    """The placement of a stage that has one."""
    attrs = getattr(tensor.op, "attrs", None)
    if not attrs or f"{PLACED}part" not in attrs:
        return None
    first, count, size, part = (attrs[f"{PLACED}{name}"] for name in ("first", "count", "size", "part"))
    return Placement(first, count, int(size), "tile" if str(part) == "tile" else "row")


def is_table(tensor: te.Tensor) -> bool:
    """Whether a stage is a table: see `TABLE`."""
    attrs = getattr(tensor.op, "attrs", None)
    return bool(attrs) and next(iter(TABLE)) in attrs


def is_derived(tensor: te.Tensor) -> bool:
    """Whether a stage computes each element from the results of reductions or scans."""

    def reduces(op: te.Operation) -> bool:
        return isinstance(op, te.ComputeOp) and isinstance(op.body[0], tirx.Reduce)

    op = tensor.op
    if not isinstance(op, te.ComputeOp) or reduces(op):
        return False
    return any(reduces(x.op) or scan_spec(x.op) is not None or is_derived(x) for x in op.input_tensors)


class RaggedAxes:
    """Sizes, kinds of axes and tables of one packed graph."""

    def __init__(self, batch: Any, time: Any, sequences: Any) -> None:
        self.batch, self.time, self.sequences = batch, time, sequences
        self.tables: dict[int, Table] = {}
        self.counts: dict[int, Any] = {POSITIONS: time}
        self.columns: dict[tuple[str, int, int], te.Tensor] = {}
        self.placed: dict[tuple[str, int], te.Tensor] = {}
        self.leads: dict[int, te.Tensor] = {}
        self.positions: dict[int, tuple[te.Tensor, te.Tensor]] = {}
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

            self.columns[key] = compute((self.count(owner),), body, f"{role}_{of}_{owner}", TABLE)
        return self.columns[key]

    def bound(self, role: str, of: int, place: Place) -> Expr:
        if place.owner is None:
            return self.table(of)[role](place.index)
        return self.column(role, of, place.owner)(place.index)

    def length(self, of: int, place: Place) -> Expr:
        return self.bound("ends", of, place) - self.bound("starts", of, place)

    # ---- where elements lie

    def place_of(self, part: Literal["tile", "row"], length: int, position: Expr) -> Expr:
        """The tile of `length` that a position lies in, or its row there."""
        key = (part, length)
        if key not in self.placed:
            first, count = self.positions_of_tiles(length)
            here = lambda t: t - self.column("starts", POSITIONS, POSITIONS)(t)
            bodies = {
                "tile": lambda t: self.column("starts", length, POSITIONS)(t) + tirx.floordiv(here(t), length),
                "row": lambda t: tirx.floormod(here(t), length),
            }
            attrs = Placement(first, count, length, part).attrs() | TABLE
            self.placed[key] = compute((self.time,), bodies[part], f"{part}_of_{length}", attrs, ["t"])
        return self.placed[key](position)

    def lead(self, length: int, tile: Expr) -> Expr:
        """The first position of a tile of `length` as its sequence counts them."""
        if length not in self.leads:
            first = self.column("starts", length, length)
            self.leads[length] = compute((self.count(length),), lambda n: (n - first(n)) * length, f"lead_of_{length}", TABLE)
        return self.leads[length](tile)

    def positions_of_tiles(self, length: int) -> tuple[te.Tensor, te.Tensor]:
        """For every tile of `length` its first position, and how many it has."""
        if length in self.positions:
            return self.positions[length]
        starts, ends = (self.column(role, POSITIONS, length) for role in ("starts", "ends"))
        shape = (self.count(length),)
        first = compute(shape, lambda n: starts(n) + self.lead(length, n), f"first_of_{length}", TABLE)
        count = compute(shape, lambda n: tirx.max(tirx.min(ends(n) - first(n), length), 0), f"count_of_{length}", TABLE)
        return self.positions.setdefault(length, (first, count))

    def edge_of(self, role: Literal["starts", "ends"], of: int, sequence: Expr) -> Expr:
        """The first or the last tile of a sequence that has any."""
        key = (role, of)
        if key not in self.placed:
            table, by_tile = self.table(of)[role], self.column(role, of, of)
            shift = 1 if role == "ends" else 0
            only = lambda n: tirx.Select(tirx.EQ(n, by_tile(n) - shift), tirx.const(1, "int32"), tirx.const(0, "int32"))
            count = compute((self.count(of),), only, f"is_edge_{role}_{of}", TABLE)
            attrs = Placement(self.table(of)["owner"], count, 1, "tile").attrs()
            name = f"last_of_{of}" if role == "ends" else f"first_tile_of_{of}"
            self.placed[key] = compute((self.sequences,), lambda s: table(s) - shift, name, attrs)
        return self.placed[key](sequence)
