"""Nests on the sides of a block's choice (see `tilegen.plan.branches`): all threads of a block go the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import is_load, rewrite
from tilegen.plan.gpu.program import Node
from tilegen.plan.gpu.shared import Shared


class Sides:
    """What a block does on one side only; a part of `tilegen.plan.gpu.tile.TileEmitter`."""

    choice: Any = None
    """A register that says which side this step takes, from where it is known; None before."""

    def _choose(self: Any) -> None:
        """Put the choice of this step into a register."""
        branch = self.program.branch
        self.arena.use([home for (tensor, _), home in self.homes.items() if tensor in {branch.flag}], [])
        condition = rewrite(branch.condition, ir.Call, lambda call: branch.flag(*self.outer) if is_load(call) else call)
        self.choice = self.decided
        T.buffer_store(self.choice, tirx.Cast("int32", self._values_at([]).resolved(condition)), [0])

    @contextmanager
    def _given(self: Any, side: bool) -> Iterator[None]:
        """What follows happens on one side only."""
        with ExitStack() as stack:
            taken = self.choice[(0,)] != 0
            stack.enter_context(T.If(taken if side else tirx.Not(taken)))
            stack.enter_context(T.Then())
            yield

    def _either(self: Any, node: Node) -> None:
        """A nest on the sides it is needed on, each with the choice put into its expressions."""
        if self.choice is None or node.role == "load" or not (node.split or len(node.sides) == 1):
            self._nest(node)
            return
        arena = self.arena
        start, met, fragments = (list(arena.read), list(arena.written)), arena.met, dict(self.fragments.held)
        ends = [] if len(node.sides) == 2 else [start]
        for side in node.sides:
            arena.read, arena.written = list(start[0]), list(start[1])
            self.fragments.held = dict(fragments)
            self.side = side
            with self._given(side):
                self._nest(node)
            self.side = None
            ends.append((arena.read, arena.written))
            fragments = {key: buffer for key, buffer in fragments.items() if key in self.fragments.held}
        # Whether a barrier was met depends on the side: what any side leaves open is open.
        arena.read, arena.written = _union(end[0] for end in ends), _union(end[1] for end in ends)
        arena.met, self.fragments.held = met, fragments


def _union(parts: Iterable[list[Shared]]) -> list[Shared]:
    found: list[Shared] = []
    for part in parts:
        found += [home for home in part if home not in found]
    return found
