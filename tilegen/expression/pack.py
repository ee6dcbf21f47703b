"""Packed sequences: a graph over a batch of equal lengths becomes one over sequences laid end to end.

A graph is written for tensors [B, T, ...].  `pack` rewrites it, forward or adjoint alike, for one row of T positions that
hold S sequences, so that every stage computes for each position what it would have computed in that sequence alone:

- a tensor with positions or chunks of positions has one row of them, [1, T, ...] or [1, N, ...];
- a tensor with a batch axis only (a state) has one entry for each sequence, [S, ...];
- everything else (weights) stays as it is, and what is summed over batch and time is summed over all positions.

Inside a stage the position becomes the one in its sequence, T the length of that sequence, and a read at local
position e one at start + e.  Scans start anew where a sequence does.  Chunks never cross a boundary: sequence s has
ceil(length / C) of them, and N counts at least all of them.  Tables tell which sequence a position or chunk is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import ir, te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression.ragged import BATCH, POSITIONS, TABLE, Kind, Place, RaggedAxes, Table, is_derived
from tilegen.expression.rebuild import rebuilt
from tilegen.expression.scalars import const
from tilegen.expression.scan import scan, scan_inputs, scan_spec
from tilegen.expression.stages import compute, is_stopped, placeholder, stop_gradient
from tilegen.expression.walkers import (
    Expr,
    const_int,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    substitute,
    topological,
    variables,
)


@dataclass
class Packed:
    """A packed graph.

    `outputs` are the packed tensors, `inputs` maps the arguments of the graph to those of the packed one.  `tables` are int32
    arguments by chunk length C (1 for positions): ``starts [S]``, ``ends [S]`` and ``owner [N]``, where the chunks
    starts[s] up to ends[s] belong to sequence s, and owner[n] is the sequence of chunk n, or S - 1 beyond the last.
    """

    outputs: list[te.Tensor]
    inputs: dict[te.Tensor, te.Tensor]
    tables: dict[int, Table] = field(default_factory=dict)


def pack(outputs: Sequence[te.Tensor], batch: Any, time: Any, sequences: Any) -> Packed:
    """Rewrite a graph whose symbolic sizes are `batch` and `time` for packed `sequences` (a new symbolic size S).

    Raises
    ------
    ExpressionError
        Where two positions meet in one stage, or an axis is neither positions nor chunks of them; the stage is named.
    """
    packer = Packer(batch, time, sequences)
    packed = packer.pack(outputs)
    inputs = {x: y for x, y in packer.done.items() if isinstance(x.op, te.PlaceholderOp)}
    return Packed(packed, inputs, packer.tables)


class Packer(RaggedAxes):
    """One rewriting: packed tensors by the original ones, and those that get a sequence axis of their own."""

    def __init__(self, batch: Any, time: Any, sequences: Any) -> None:
        super().__init__(batch, time, sequences)
        self.done: dict[te.Tensor, te.Tensor] = {}
        self.hidden: set[te.Tensor] = set()
        self.stores: dict[te.Tensor, te.Tensor] = {}

    def pack(self, outputs: Sequence[te.Tensor]) -> list[te.Tensor]:
        """The packed form of `outputs`; what an earlier call packed is used again."""
        self.find_hidden(outputs)
        for op in topological(outputs):
            for k in range(op.num_outputs):
                if op.output(k) not in self.done:
                    self.done[op.output(k)] = self.rewrite(op, k)
        return [self.done[y] for y in outputs]

    def find_hidden(self, outputs: Sequence[te.Tensor]) -> None:
        """Find tensors without batch and time that are nevertheless one for each sequence; they get a sequence axis.

        Such a tensor reads fixed positions: the last decay, or what a sequence's end sends back to a tensor [1, T] that all
        rows of a batch share.  The latter is summed over the batch, as the gradient of a weight is; it is told from one by
        being read by a tensor with positions and without a batch.
        """
        order = [op for op in topological(outputs) if isinstance(op, te.ComputeOp)]
        bare = {op: [k for k in self.kinds(op.output(0)) if k is not None] for op in order}
        inner = {op: {self.kind(a.dom.extent, op.name) for a in op.reduce_axis} for op in order}
        changed = True
        while changed:
            before = len(self.hidden)
            for op in order:
                if bare[op] or op.output(0) in self.hidden or any(isinstance(k, int) for k in inner[op]):
                    continue
                if not any(x in self.hidden or any(self.kinds(x)) for x in op.input_tensors):
                    continue
                if BATCH not in inner[op] or any(self.is_shared_row(r, op.output(0)) for r in order):
                    self.hidden.add(op.output(0))
            changed = len(self.hidden) > before
        for y in outputs:
            if y in self.hidden:
                raise ExpressionError(f"output '{y.op.name}' would have one value for each packed sequence; give it a batch axis")

    def is_shared_row(self, reader: te.ComputeOp, tensor: te.Tensor) -> bool:
        """Whether `reader` reads `tensor` and has positions but no batch, or is hidden itself."""
        if not any(x == tensor for x in reader.input_tensors):
            return False
        kinds = self.kinds(reader.output(0))
        return reader.output(0) in self.hidden or (BATCH not in kinds and any(isinstance(k, int) for k in kinds))

    # ---- stages

    def rewrite(self, op: te.Operation, k: int) -> te.Tensor:
        tensor = op.output(k)
        kinds = self.kinds(tensor)
        if isinstance(op, te.PlaceholderOp):
            return placeholder(self.shape(tensor.shape, kinds), str(tensor.dtype), op.name) if any(kinds) else tensor
        if isinstance(op, te.ComputeOp):
            new = self.computed(op, kinds)
        elif (spec := scan_spec(op)) is not None and isinstance(kinds[spec.axis], int):
            new = self.scanned(op, kinds[spec.axis])
        else:
            inputs = list(op.inputs)
            if spec is None and any(any(self.kinds(x)) for x in inputs):
                raise ExpressionError(f"stage '{op.name}' scatters over batch or time, which cannot be packed")
            new = rebuilt(op, k, self.done, [self.done[x] for x in inputs])
        return stop_gradient(new) if is_stopped(op) else new

    def computed(self, op: te.ComputeOp, kinds: list[Kind]) -> te.Tensor:
        body = op.body[0]
        reduce = body if isinstance(body, tirx.Reduce) else None
        source = reduce.source[0] if reduce is not None else body
        spatial = [(axis.var, axis.dom.extent, kind) for axis, kind in zip(op.axis, kinds, strict=True)]
        inner = [(a.var, a.dom.extent, self.kind(a.dom.extent, op.name)) for a in reduce.axis] if reduce is not None else []
        timed = [x for x in spatial if isinstance(x[2], int)]
        summed = [x for x in inner if isinstance(x[2], int)]
        if op.output(0) in self.hidden:
            return self.computed_by_sequence(op, spatial, inner, source)
        if len(timed) > 1:
            raise ExpressionError(f"stage '{op.name}' has {len(timed)} axes of positions, which cannot be packed; use blocks")
        if not timed and summed and BATCH in kinds:
            return self.reduced_by_sequence(op, spatial, inner, source)
        anchor = timed[0] if timed else summed[0] if summed else next((x for x in spatial + inner if x[2] == BATCH), None)
        if anchor is None:
            if any(v.same_as(self.time) for v in variables(source)):
                raise ExpressionError(f"stage '{op.name}' uses the length T but has no batch axis; give it one")
            return rebuilt(op, 0, self.done, [])
        names = {v: tirx.Var(v.name, "int32") for v, _, _ in spatial + inner}
        value = self.local(op, source, names, anchor, spatial + inner)
        has_time = isinstance(anchor[2], int)
        axes = [te.reduce_axis((0, self.extent(kind, n, has_time)), v.name) for v, n, kind in inner]
        value = substitute(value, {names[v]: a.var for (v, _, _), a in zip(inner, axes, strict=True)})
        whole = te.sum if reduce is None else self.reducer(op, reduce)

        def point(*i: Any) -> Expr:
            here = substitute(value, {names[v]: x for (v, _, _), x in zip(spatial, i, strict=True)})
            return whole(here, axis=axes) if axes else here

        return compute(self.shape([n for _, n, _ in spatial], kinds), point, op.name, op.attrs, [v.name for v, _, _ in spatial])

    def computed_by_sequence(self, op: te.ComputeOp, spatial: Any, inner: Any, source: Expr) -> te.Tensor:
        """A hidden tensor, with the sequence as its first axis; what it sums over the batch is one row here."""
        s, names = tirx.Var("s", "int32"), {v: tirx.Var(v.name, "int32") for v, _, _ in spatial + inner}
        place = Place(s, None, s)
        mapping = dict(names) | {self.time: self.length(POSITIONS, place)}
        value = self.reads(op, substitute(source, mapping), place)
        rest = [x for x in inner if x[2] != BATCH]
        axes = [te.reduce_axis((0, n), v.name) for v, n, _ in rest]
        value = substitute(value, {names[v]: a.var for (v, _, _), a in zip(rest, axes, strict=True)})

        def point(*i: Any) -> Expr:
            here = {s: i[0]} | {names[v]: x for (v, _, _), x in zip(spatial, i[1:], strict=True)}
            part = substitute(value, here)
            return self.reducer(op, op.body[0])(part, axis=axes) if axes else part

        called = ["s", *[v.name for v, _, _ in spatial]]
        return compute([self.sequences, *[n for _, n, _ in spatial]], point, op.name, op.attrs, called)

    @staticmethod
    def reducer(op: te.ComputeOp, reduce: tirx.Reduce) -> Any:
        return {prim.Add: te.sum, prim.Max: te.max, prim.Min: te.min}[type(reduce.combiner.result[0])]

    def local(self, op: te.ComputeOp, source: Expr, names: Any, anchor: Any, axes: Any) -> Expr:
        """`source` in packed coordinates, over the variables `names`; zero beyond the end of the sequence where it is summed."""
        var, _, kind = anchor
        index = names[var]
        if kind == BATCH:
            place = Place(index, None, index)
            mapping = dict(names)
        else:
            place = Place(self.owner_of(kind, index), kind, index)
            mapping = dict(names) | {var: index - self.bound("starts", kind, place)}
            source = self.placed_reads(op, source, var, index) if kind == POSITIONS else self.lead_positions(source, kind, var, index)
        inside = []
        for v, _, k in axes:
            summed = any(a.var.same_as(v) for a in getattr(op.body[0], "axis", []))
            if isinstance(k, int) and summed and not (v.same_as(var) and k == POSITIONS):
                inside.append(mapping[v] < self.length(k, place))
        mapping[self.time] = self.length(POSITIONS, place)
        value = self.reads(op, substitute(source, mapping), place)
        if not inside:
            return value
        outside = self.neutral(op, str(op.output(0).dtype))
        return tirx.if_then_else(tirx.all(*inside), value, outside)

    def lead_positions(self, source: Expr, kind: int, var: Any, tile: Any) -> Expr:
        """`source` with the first position of its tile from a table: what is added to it stays an index without a product."""

        def lead(node: Any) -> Any:
            plain = node.a.same_as(var) and const_int(node.b) == kind
            return self.lead(kind, tile) if plain else node

        return rewrite(source, prim.Mul, lead)

    def placed_reads(self, op: te.ComputeOp, source: Expr, var: Any, position: Any) -> Expr:
        """`source` with the quotients and remainders of its position by the lengths of tiles it reads as stages of their own.

        They are what `placement` tells a planner: how the tiles that a result is read from turn back into its elements.
        """
        lengths = {k for x in op.input_tensors for k in self.kinds(x) if isinstance(k, int) and k != POSITIONS}

        def place(node: Any) -> Any:
            length = const_int(node.b)
            if length not in lengths or not node.a.same_as(var):
                return node
            if isinstance(node, prim.FloorMod):
                # The remainder once more: a table's values say nothing of their range.
                return tirx.floormod(self.place_of("row", length, position), length)
            return self.place_of("tile", length, position) - self.column("starts", length, POSITIONS)(position)

        return rewrite(rewrite(source, prim.FloorDiv, place), prim.FloorMod, place)

    @staticmethod
    def neutral(op: te.ComputeOp, dtype: str) -> Expr:
        kind = type(op.body[0].combiner.result[0])
        return {prim.Add: tirx.const(0, dtype), prim.Max: tirx.min_value(dtype), prim.Min: tirx.max_value(dtype)}[kind]

    def reads(self, op: te.ComputeOp, expr: Expr, place: Place) -> Expr:
        def fix(call: Any) -> Any:
            if not is_load(call) or load_tensor(call) not in self.done:
                return call
            return self.read(load_tensor(call), load_indices(call), place)

        return rewrite(expr, ir.Call, fix)

    def read(self, tensor: te.Tensor, indices: list[Expr], place: Place) -> Expr:
        """The read of an original tensor at local `indices` as one of its packed form, guarded where it leaves the row."""
        kinds, new, packed = self.kinds(tensor), self.done[tensor], []
        timed, guards = any(isinstance(k, int) for k in kinds), []
        if tensor in self.hidden:
            guards = [] if place.owner is None else [place.sequence >= 0, place.sequence < new.shape[0]]
            packed = [place.sequence]
        for i, kind, n in zip(indices, kinds, list(new.shape)[len(packed) :], strict=True):
            if kind is None:
                packed.append(i)
            elif kind == BATCH:
                # The one row by the reader's own batch axis where it has one: a planner sees that both are at the same place.
                row = const(0, "int32") if place.owner is None else i
                packed.append(row if timed else place.sequence)
                if not timed and place.owner is not None:
                    guards += [place.sequence >= 0, place.sequence < n]
            else:
                at = self.edge(kind, place, i) if place.owner is None else None
                at = self.ana.simplify(self.bound("starts", kind, place) + i) if at is None else at
                if not (isinstance(at, ir.Var) and kind == place.owner):
                    guards += [at >= 0, at < n]
                    if place.owner is None:  # a sequence may be empty: then there is nothing at its start
                        guards += [i >= 0, i < self.length(kind, place)]
                    elif kind == place.owner:
                        new = self.stored(new)
                packed.append(at)
        value = new(*packed)
        return tirx.if_then_else(tirx.all(*guards), value, const(0, str(new.dtype))) if guards else value

    def stored(self, tensor: te.Tensor) -> te.Tensor:
        """`tensor` as a stage in memory, where it is read at another tile of the sequence and takes more than its inputs.

        Computed where it is read, it would be computed under the guards of that read, and they under those of the next one.
        """
        if tensor not in self.stores:
            attrs = dict(tensor.op.attrs or {}) | TABLE
            wanted = is_derived(tensor)
            self.stores[tensor] = compute(tensor.shape, lambda *i: tensor(*i), f"{tensor.op.name}_stored", attrs) if wanted else tensor
        return self.stores[tensor]

    def edge(self, kind: int, place: Place, i: Expr) -> Expr | None:
        """The place of local index `i` of a sequence where that is its first or its last one; None elsewhere."""
        tiles = tirx.floordiv(self.length(POSITIONS, place) + (kind - 1), kind)
        if const_int(i) == 0:
            return self.edge_of("starts", kind, place.sequence)
        if const_int(self.ana.simplify(i - tiles)) == -1:
            return self.edge_of("ends", kind, place.sequence)
        return None

    def reduced_by_sequence(self, op: te.ComputeOp, spatial: Any, inner: Any, source: Expr) -> te.Tensor:
        """A reduction over the positions of each sequence: a scan of what they contribute, read where a sequence ends."""
        timed = [x for x in inner if isinstance(x[2], int)]
        if len(timed) > 1:
            raise ExpressionError(f"stage '{op.name}' reduces over {len(timed)} axes of positions, which cannot be packed")
        var, _, kind = timed[0]
        outer = [x for x in spatial if x[2] != BATCH]
        rest = [x for x in inner if not x[0].same_as(var)]
        names = {v: tirx.Var(v.name, "int32") for v, _, _ in spatial + inner}
        value = self.local(op, source, names, timed[0], inner)
        value = substitute(value, {names[v]: const(0, "int32") for v, _, k in spatial if k == BATCH})  # there is one row
        axes = [te.reduce_axis((0, n), v.name) for v, n, _ in rest]
        value = substitute(value, {names[v]: a.var for (v, _, _), a in zip(rest, axes, strict=True)})
        over = self.reducer(op, op.body[0])

        def row(*i: Any) -> Expr:
            here = {names[var]: i[0]} | {names[v]: x for (v, _, _), x in zip(outer, i[1:], strict=True)}
            part = substitute(value, here)
            return over(part, axis=axes) if axes else part

        called = [var.name, *[v.name for v, _, _ in outer]]
        rows = compute([self.count(kind), *[n for _, n, _ in outer]], row, f"{op.name}_rows", axes=called)
        starts = self.marks(f"{op.name}_starts", kind, 0, len(called), reverse=False)
        along: Any = {prim.Add: "sum", prim.Max: "max", prim.Min: "min"}[type(op.body[0].combiner.result[0])]
        running = scan(rows, axis=0, kind=along, reset=starts, name=f"{op.name}_running")
        batch = next(k for k, x in enumerate(spatial) if x[2] == BATCH)
        nothing = self.neutral(op, str(rows.dtype))

        def last(*i: Any) -> Expr:
            place = Place(i[batch], None, i[batch])
            end = self.edge_of("ends", kind, place.sequence)
            some = tirx.all(self.length(kind, place) > 0, end >= 0, end < self.count(kind))
            return tirx.if_then_else(some, running(end, *i[:batch], *i[batch + 1 :]), nothing)

        shape = self.shape([n for _, n, _ in spatial], [k for _, _, k in spatial])
        return compute(shape, last, op.name, op.attrs, [v.name for v, _, _ in spatial])

    # ---- scans

    def is_start(self, kind: int, n: Any, reverse: bool) -> Expr:
        """Whether chunk `n` is the first of its sequence in the direction of a scan."""
        place = Place(self.owner_of(kind, n), kind, n)
        edge = self.bound("ends", kind, place) - 1 if reverse else self.bound("starts", kind, place)
        return tirx.EQ(n, edge)

    def marks(self, name: str, kind: int, axis: int, rank: int, reverse: bool, given: te.Tensor | None = None) -> te.Tensor:
        """The resets of a packed scan: where a sequence starts, and where the graph itself had one."""

        def mark(*i: Any) -> Expr:
            here = self.is_start(kind, i[axis], reverse).astype("int32")
            if given is None:
                return here
            own = given(*[0 if const_int(n) == 1 else x for n, x in zip(given.shape, i, strict=True)])
            return tirx.max(here, (own != 0).astype("int32"))

        extents = [tirx.const(1, "int32") if given is None else n for n in (given.shape if given is not None else range(rank))]
        extents[axis] = self.count(kind)
        return compute(extents, mark, name)

    def scanned(self, op: te.ExternOp, kind: int) -> te.Tensor:
        """The scan of all sequences at once, started anew at each."""
        spec, roles = scan_spec(op), {role: self.done[x] for role, x in scan_inputs(op).items()}
        rank, axis, initial = len(roles["x"].shape), spec.axis, roles.get("initial")
        return scan(
            roles["x"],
            axis=axis,
            kind=spec.kind,
            decay=roles.get("decay"),
            reset=self.marks(f"{op.name}_starts", kind, axis, rank, spec.reverse, roles.get("reset")),
            entry=None if initial is None else self.entries(op, roles, axis, kind),
            reverse=spec.reverse,
            exclusive=spec.exclusive,
            name=op.name,
        )

    def entries(self, op: te.Operation, roles: Mapping[str, te.Tensor], axis: int, kind: int) -> te.Tensor:
        """For every element the initial state of its sequence; it is read where a sequence starts."""
        initial = roles["initial"]
        if "reset" in roles:
            raise ExpressionError(f"scan '{op.name}' has an initial state and resets of its own, which cannot be packed; drop one")

        def state(*i: Any) -> Expr:
            s = self.owner_of(kind, i[axis])
            rest = [x for k, x in enumerate(i) if k != axis]
            guard = tirx.all(s >= 0, s < self.sequences)
            return tirx.if_then_else(guard, initial(s, *rest[1:]), const(0, str(initial.dtype)))

        return compute(roles["x"].shape, state, f"{op.name}_entry")
