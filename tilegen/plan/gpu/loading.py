"""Tiles from global to shared memory, by way of registers: 16 bytes a thread where rows allow it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import ir, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import conjunction, find, substitute, variables
from tilegen.plan.gpu import copying, masks, tf32, vector
from tilegen.plan.gpu.block import Block
from tilegen.plan.gpu.program import Node
from tilegen.plan.gpu.shared import Shared
from tilegen.plan.gpu.values import rounded
from tilegen.schedules.rule import dtype_bytes

RUN = 8
"""Elements of a row that one thread moves at a time."""


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `last` of a tile, which the block loads alike: `rounds` times, `run` elements of a row a thread."""

    first: int
    last: int
    run: int
    rounds: int


class Loading(Block):
    """A block that loads its tiles: `_fetch` issues the loads of all of them, `_load` puts one in its place."""

    def _load_value(self, node: Node, inner: Sequence[Any]) -> Any:
        if node.cut is not None:
            shift = self.part * node.extents[node.cut]
            inner = [i + shift if k == node.cut else i for k, i in enumerate(inner)]
        if node.from_memory:
            return self.memory[node.tensor][(*self.outer, *inner)]
        return self._values_at(inner, inline=True).compute(node.tensor)

    def _pieces(self, node: Node) -> list[Piece]:
        """The pieces of a tile: a list that is made of several tensors is loaded from one after the other."""
        if not hasattr(self, "pieces"):
            self.pieces: dict[te.Tensor, list[Piece]] = {}
        if node.tensor not in self.pieces:
            shape = node.tile
            cuts = [0, *(self._cuts_of(node) if len(shape) == 2 else []), shape[0] if shape else 1]
            self.pieces[node.tensor] = [self._piece(node, first, last) for first, last in itertools.pairwise(cuts)]
        return self.pieces[node.tensor]

    def _cuts_of(self, node: Node) -> list[int]:
        inner = [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))]
        for var, n in zip(inner, node.extents, strict=True):
            self.analyzer.bind(var, ir.Range(0, n))
        return vector.cuts(self._load_value(node, inner), inner[0], node.extents[0])

    def _narrowest(self, node: Node) -> int:
        """Bytes of an element of the narrowest tensor that a tile is loaded from."""
        value = self._load_value(node, [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))])
        loads = [load for load in find(value, vector.is_load) if any(load.source.same_as(b) for b in self.memory.values())]
        return min((dtype_bytes(str(load.source.dtype)) for load in loads), default=1)

    def _piece(self, node: Node, first: int, last: int) -> Piece:
        shape = node.tile
        total = math.prod(shape[1:]) * (last - first)
        # What is copied past registers goes in runs of 16 bytes.
        long = RUN // 2 if self.kernel.tf32 and self.past_registers else RUN
        run = long if shape and shape[-1] % long == 0 and node.extents[-1] % long == 0 else 1
        # A piece of few rows keeps all threads busy with shorter runs, as long as those are 16 bytes.
        few = run == long and last - first < (shape[0] if shape else 1) and total // run < self.threads
        if few and long // 2 * self._narrowest(node) >= vector.WIDEST:
            run //= 2
        return Piece(first, last, run, -(-(total // run) // self.threads))

    @contextmanager
    def _run(self, node: Node, piece: Piece) -> Iterator[tuple[Any, list[Any], Any]]:
        """Loop over the runs of this thread: (register of the first element, inner point of it, whether there is one)."""
        shape, run, rounds = node.tile, piece.run, piece.rounds
        total = math.prod(shape[1:]) * (piece.last - piece.first)
        with ExitStack() as stack:
            turn = stack.enter_context(T.unroll(0, rounds)) if rounds > 1 else tirx.const(0, "int32")
            number = self._let("run", turn * self.threads + self.thread, rounds * self.threads)
            exists = number < total // run if (total // run) % self.threads else None
            found: list[Any] = []
            rest = number
            for k in reversed(range(len(shape))):
                n, step = shape[k], (run if k == len(shape) - 1 else 1)
                begin, end = (piece.first, min(piece.last, node.extents[0])) if k == 0 else (0, node.extents[k])
                whole = k == 0 and exists is None
                count = piece.last - piece.first if k == 0 else n
                here = rest if whole else tirx.truncmod(rest, count // step)
                # Padding is guarded (`_inside`), so the analyzer may take every index for a real one.
                var = self._let(f"i{k}", here + begin if begin else here)
                self.analyzer.bind(var, ir.Range(begin, max(begin + 1, end // step)))
                found.insert(0, var * step if step > 1 else var)
                rest = tirx.truncdiv(rest, count // step)
            yield turn * run, found, exists

    def _fetch(self, condition: Any, copies: bool = True) -> None:
        """Issue the vector loads of every tile that is loaded, into registers, and (with `copies`) those past them."""
        if not hasattr(self, "slots"):
            self.slots: dict[tuple[te.Tensor, Piece], list[Any]] = {}
        loads = [n for n in self.program.steps if n.role == "load"]
        copied = [n for n in loads if self._is_copied(n)]
        with self._if(condition):
            for node in copied if copies else []:
                self._start_copies(node)
        for node in [n for n in loads if n not in copied]:
            for piece in self._pieces(node):
                if piece.run > 1:
                    self._fetch_piece(node, piece, condition)

    def _is_copied(self, node: Node) -> bool:
        """Whether a tile goes to shared memory as it is, while the step before computes: asynchronously, past the registers."""
        if not hasattr(self, "asynchronous"):
            self.asynchronous: dict[te.Tensor, bool] = {}
        if node.tensor not in self.asynchronous:
            homes = self._writes(node)
            alone = self.past_registers and self.arena.copies > 1 and len(homes) == 1
            whole = tuple(node.extents) == tuple(node.tile)
            self.asynchronous[node.tensor] = (
                alone and whole and all(self._is_plain(node, p, homes[0]) for p in self._pieces(node))
            )
        return self.asynchronous[node.tensor]

    def _is_plain(self, node: Node, piece: Piece, home: Shared) -> bool:
        """Whether runs of a piece are 16 bytes of memory, or zeros where there is none."""
        if piece.run * dtype_bytes(home.dtype) != copying.COPIED or home.tf32:
            return False
        lane, inner = self._probe(node, piece)
        reads = self._reads_at(node, inner, lane, piece.run)
        if len(reads) != 1 or reads[0].width != piece.run or str(reads[0].load.source.dtype) != home.dtype:
            return False
        reads[0].slot = tirx.decl_buffer([piece.run], home.dtype, name="probe")
        value = vector.replaced(self._run_value(node, inner, lane), reads, lane, 0)
        value = rounded(vector.unguarded(value, reads[:1]), home.dtype)
        return vector.is_load(value) and bool(value.source.same_as(reads[0].slot))

    def _start_copies(self, node: Node) -> None:
        home = self._writes(node)[0]
        for piece in self._pieces(node):
            lane = tirx.Var("lane", "int32")
            self.analyzer.bind(lane, ir.Range(0, piece.run))
            with self._run(node, piece) as (_, inner, exists), self._if(exists):
                (read,) = self._reads_at(node, inner, lane, piece.run)
                first = [substitute(i, {lane: tirx.const(0, "int32")}) if hasattr(i, "ty") else i for i in read.load.indices]
                copying.copy(home.buffer[(home.flat(inner),)], read.load.source[tuple(first)], conjunction(read.guards))

    def _fetch_piece(self, node: Node, piece: Piece, condition: Any) -> None:
        run = piece.run
        lane = tirx.Var("lane", "int32")
        self.analyzer.bind(lane, ir.Range(0, run))
        slots = self.slots.get((node.tensor, piece))
        if slots is None:
            slots = [vector.allocate(read, piece.rounds * run, f"{node.name}_ahead") for read in self._reads_of(node, piece)]
            self.slots[node.tensor, piece] = slots
        if not slots:
            return

        def issue(guarded: bool) -> None:
            with self._run(node, piece) as (at, inner, exists):
                reads = self._reads_at(node, inner, lane, run)
                asked = [condition if guarded else None, exists, self._inside(node, inner)]
                extra = conjunction([c for c in asked if c is not None])
                for read, slot in zip(reads, slots, strict=True):
                    vector.fetch(read, lane, run, slot, at, extra, guarded)

        whole = self._whole_piece(node, piece)
        if not whole:
            issue(True)
            return
        # All tiles but those at the ends of a sequence are there as a whole: then no thread asks about its rows.
        with T.If(conjunction([*([] if condition is None else [condition]), *whole])):
            with T.Then():
                issue(False)
            with T.Else():
                issue(True)

    def _whole_piece(self, node: Node, piece: Piece) -> list[Any]:
        """Conditions of the block under which all guards of a piece hold; none where they are not comparisons of rows."""
        if len(node.extents) != 2 or piece.rounds == 1:
            return []
        lane, (row, column) = self._probe(node, piece)
        reads = self._reads_at(node, [row, column], lane, piece.run)
        rows = range(piece.first, max(piece.first + 1, min(piece.last, node.extents[0])))
        found: list[Any] = []
        for guard in [part for read in reads for whole in read.guards for part in masks.parts(whole)]:
            # A width that is no multiple of the tile's makes conditions on columns too.
            along = any(v.same_as(w) for v in variables(guard) for w in (lane, *variables(column)))
            worst = None if along else masks.worst(guard, row, rows)
            if worst is None:
                return []
            if not masks.known(worst, found):
                found.append(worst)
        return found

    def _reads_of(self, node: Node, piece: Piece) -> list[vector.VectorRead]:
        lane, inner = self._probe(node, piece)
        return self._reads_at(node, inner, lane, piece.run)

    def _probe(self, node: Node, piece: Piece) -> tuple[Any, list[Any]]:
        """A lane and the first point of any run of a piece, as variables."""
        run = piece.run
        inner = [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))]
        for k, (var, n) in enumerate(zip(inner, node.extents, strict=True)):
            begin, end = (piece.first, max(piece.first + 1, min(piece.last, n))) if k == 0 else (0, n)
            self.analyzer.bind(var, ir.Range(begin, end // run if k == len(inner) - 1 else end))
        lane = tirx.Var("lane", "int32")
        self.analyzer.bind(lane, ir.Range(0, run))
        return lane, [*inner[:-1], inner[-1] * run]

    def _reads_at(self, node: Node, inner: Sequence[Any], lane: Any, run: int) -> list[vector.VectorRead]:
        value = self._run_value(node, inner, lane)
        is_global = lambda source: any(source.same_as(b) for b in self.memory.values())  # noqa: E731
        return vector.vector_reads(value, lane, run, self.analyzer, is_global)

    def _run_value(self, node: Node, inner: Sequence[Any], lane: Any) -> Any:
        """The value at `lane` of a run, without the choices that its piece of the tile has made."""
        return vector.decided(self._load_value(node, [*inner[:-1], inner[-1] + lane]), self.analyzer)

    def _inside(self, node: Node, inner: Sequence[Any]) -> Any:
        """The condition under which a point of a padded tile exists (runs never straddle the end of a row), or None."""
        shape = node.tile
        return conjunction([i < n for i, n, p in zip(inner, node.extents, shape, strict=True) if n != p])

    def _load(self, node: Node) -> None:
        """A tile from memory (or from the registers it was fetched to) to shared memory."""
        self.arena.use(self._used(node), self._writes(node))
        for piece in self._pieces(node) if not self._is_copied(node) else []:
            with self._run(node, piece) as (at, inner, exists):
                if piece.run == 1:
                    self._load_element(node, inner, exists)
                else:
                    self._load_run(node, piece, at, inner, exists)

    def _load_element(self, node: Node, inner: Sequence[Any], exists: Any) -> None:
        inside, value = self._inside(node, inner), self._load_value(node, inner)
        with self._if(exists):
            for shared in self._writes(node):
                mine = tf32.kept(value, shared)
                if inside is not None:
                    mine = tirx.if_then_else(inside, mine, tirx.const(0, shared.dtype))
                T.buffer_store(shared.buffer, mine, [shared.flat(inner)])

    def _load_run(self, node: Node, piece: Piece, at: Any, inner: Sequence[Any], exists: Any) -> None:
        run = piece.run
        lane = tirx.Var("lane", "int32")
        self.analyzer.bind(lane, ir.Range(0, run))
        inside = self._inside(node, inner)
        reads = self._reads_at(node, inner, lane, run)
        for read, slot in zip(reads, self.slots.get((node.tensor, piece), []), strict=True):
            read.slot = slot
        value = vector.replaced(self._run_value(node, inner, lane), reads, lane, at)
        value = vector.unguarded(value, reads)
        with self._if(exists):
            for shared in self._writes(node):
                temporary = T.alloc_buffer([run], shared.dtype, scope="local")
                with T.unroll(0, run) as v:
                    mine = tf32.kept(substitute(value, {lane: v}), shared)
                    if inside is not None:
                        mine = tirx.if_then_else(inside, mine, tirx.const(0, shared.dtype))
                    T.buffer_store(temporary, mine, [v])
                step = min(run, vector.WIDEST // dtype_bytes(shared.dtype))
                for part in range(0, run, step):
                    with T.vectorized(0, step) as v:
                        T.buffer_store(shared.buffer, temporary[(part + v,)], [shared.flat(inner) + part + v])
