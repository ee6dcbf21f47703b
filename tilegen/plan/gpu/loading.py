"""Tiles from global to shared memory, by way of registers: 16 bytes a thread where rows allow it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import ir, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import conjunction, substitute
from tilegen.plan.gpu import vector
from tilegen.plan.gpu.block import Block
from tilegen.plan.gpu.program import Node
from tilegen.plan.gpu.values import rounded
from tilegen.schedules.rule import dtype_bytes

RUN = 8
"""Elements of a row that one thread moves at a time."""


class Loading(Block):
    """A block that loads its tiles: `_fetch` issues the loads of all of them, `_load` puts one in its place."""

    def _load_value(self, node: Node, inner: Sequence[Any]) -> Any:
        if node.cut is not None:
            shift = self.part * node.extents[node.cut]
            inner = [i + shift if k == node.cut else i for k, i in enumerate(inner)]
        if node.from_memory:
            return self.memory[node.tensor][(*self.outer, *inner)]
        return self._values_at(inner, inline=True).compute(node.tensor)

    def _runs(self, node: Node) -> tuple[int, int]:
        """(elements of a run, rounds) in which the block loads a tile."""
        shape = node.tile
        run = RUN if shape and shape[-1] % RUN == 0 and node.extents[-1] % RUN == 0 else 1
        total = math.prod(shape)
        return run, -(-(total // run) // self.threads)

    @contextmanager
    def _run(self, node: Node) -> Iterator[tuple[Any, list[Any], Any]]:
        """Loop over the runs of this thread: (register of the first element, inner point of it, whether there is one)."""
        shape = node.tile
        run, rounds = self._runs(node)
        total = math.prod(shape)
        with ExitStack() as stack:
            turn = stack.enter_context(T.unroll(0, rounds)) if rounds > 1 else tirx.const(0, "int32")
            number = self._let("run", turn * self.threads + self.thread, rounds * self.threads)
            exists = number < total // run if (total // run) % self.threads else None
            found: list[Any] = []
            rest = number
            for k in reversed(range(len(shape))):
                n, step = shape[k], (run if k == len(shape) - 1 else 1)
                whole = k == 0 and exists is None
                here = rest if whole else tirx.truncmod(rest, n // step)
                # Padding is guarded (`_inside`), so the analyzer may take every index for a real one.
                var = self._let(f"i{k}", here, node.extents[k] // step)
                found.insert(0, var * step if step > 1 else var)
                rest = tirx.truncdiv(rest, n // step)
            yield turn * run, found, exists

    def _fetch(self, condition: Any) -> None:
        """Issue the vector loads of every tile that is loaded, into registers."""
        if not hasattr(self, "slots"):
            self.slots: dict[te.Tensor, list[Any]] = {}
        for node in [n for n in self.program.steps if n.role == "load"]:
            run, rounds = self._runs(node)
            if run == 1:
                continue
            lane = tirx.Var("lane", "int32")
            self.analyzer.bind(lane, ir.Range(0, run))
            slots = self.slots.get(node.tensor)
            if slots is None:
                probe = self._reads_of(node, [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))], run)
                slots = self.slots[node.tensor] = [vector.allocate(read, rounds * run, f"{node.name}_ahead") for read in probe]
            if not slots:
                continue
            with self._run(node) as (at, inner, exists):
                reads = self._reads_at(node, inner, lane, run)
                inside = self._inside(node, inner)
                extra = conjunction([c for c in (condition, exists, inside) if c is not None])
                for read, slot in zip(reads, slots, strict=True):
                    vector.fetch(read, lane, run, slot, at, extra)

    def _reads_of(self, node: Node, inner: list[Any], run: int) -> list[vector.VectorRead]:
        for k, (var, n) in enumerate(zip(inner, node.extents, strict=True)):
            self.analyzer.bind(var, ir.Range(0, n // run if k == len(inner) - 1 else n))
        lane = tirx.Var("lane", "int32")
        self.analyzer.bind(lane, ir.Range(0, run))
        return self._reads_at(node, [*inner[:-1], inner[-1] * run], lane, run)

    def _reads_at(self, node: Node, inner: Sequence[Any], lane: Any, run: int) -> list[vector.VectorRead]:
        value = self._load_value(node, [*inner[:-1], inner[-1] + lane])
        is_global = lambda source: any(source.same_as(b) for b in self.memory.values())  # noqa: E731
        return vector.vector_reads(value, lane, run, self.analyzer, is_global)

    def _inside(self, node: Node, inner: Sequence[Any]) -> Any:
        """The condition under which a point of a padded tile exists (runs never straddle the end of a row), or None."""
        shape = node.tile
        return conjunction([i < n for i, n, p in zip(inner, node.extents, shape, strict=True) if n != p])

    def _load(self, node: Node) -> None:
        """A tile from memory (or from the registers it was fetched to) to shared memory."""
        homes = self._writes(node)
        self.arena.use(self._used(node), homes)
        run, _ = self._runs(node)
        lane_type = self.slots.get(node.tensor, [])
        with self._run(node) as (at, inner, exists):
            inside = self._inside(node, inner)
            if run == 1:
                value = self._load_value(node, inner)
                with self._if(exists):
                    for shared in homes:
                        zero = tirx.const(0, shared.dtype)
                        narrowed = rounded(value, shared.dtype)
                        T.buffer_store(
                            shared.buffer,
                            narrowed if inside is None else tirx.if_then_else(inside, narrowed, zero),
                            [shared.flat(inner)],
                        )
                return
            lane = tirx.Var("lane", "int32")
            self.analyzer.bind(lane, ir.Range(0, run))
            reads = self._reads_at(node, inner, lane, run)
            for read, slot in zip(reads, lane_type, strict=True):
                read.slot = slot
            value = self._load_value(node, [*inner[:-1], inner[-1] + lane])
            value = vector.unguarded(vector.replaced(value, reads, lane, at), [r.slot for r in reads])
            with self._if(exists):
                for shared in homes:
                    temporary = T.alloc_buffer([run], shared.dtype, scope="local")
                    with T.unroll(0, run) as v:
                        mine = rounded(substitute(value, {lane: v}), shared.dtype)
                        if inside is not None:
                            mine = tirx.if_then_else(inside, mine, tirx.const(0, shared.dtype))
                        T.buffer_store(temporary, mine, [v])
                    step = min(run, vector.WIDEST // dtype_bytes(shared.dtype))
                    for part in range(0, run, step):
                        with T.vectorized(0, step) as v:
                            T.buffer_store(shared.buffer, temporary[(part + v,)], [shared.flat(inner) + part + v])
