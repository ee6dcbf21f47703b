"""Nests of a tile kernel on the sides of its choice, see `tilegen.plan.branches`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.plan import stages
from tilegen.plan.branches import SIDES, branch_of
from tilegen.plan.keep import keep
from tilegen.plan.partition import is_costly


class Sides:
    """What a tile computes on one side only; a part of `tilegen.plan.emit_tile.TileEmitter`."""

    def know_branch(self: Any) -> None:
        """Find the choice of the kernel."""
        computed = {*self.kernel.locals, *self.kernel.anchors, *self.kernel.emits}
        self.branch = branch_of([*self.kernel.emits, *self.kernel.anchors], set(self.memory) - computed, self.kernel.space)
        self.side = None  # the side of the choice that nests are being written for
        self.chosen = None  # the choice of this step as a variable

    def position(self: Any, tensor: te.Tensor) -> tuple[int, int]:
        """Place in the order: what only one side of a choice needs waits until that is made."""
        place, branch = self.kernel.order[tensor], self.branch
        waits = branch is not None and tensor not in self.after and len(branch.sides(tensor)) == 1
        return (max(place, self.kernel.order[branch.flag]) if waits else place), place

    @contextmanager
    def where_needed(self: Any, tensor: te.Tensor, at: list[Any]) -> Iterator[None]:
        """Nests of a stage, on one side of the kernel's choice if only that needs it; copies made there serve nobody else."""
        branch = self.branch
        sides = SIDES if branch is None or tensor in self.after else branch.sides(tensor)
        if len(sides) == 2:
            yield
            return
        for source, _ in stages.reads(tensor) if stages.kind(tensor) == "reduce" else []:
            # What both sides need is computed outside of either.
            tile = stages.kind(source) == "map" and source not in self.memory and self._tiled(source)
            if tile and len(branch.sides(source)) == 2 and self._aligned(tensor, source):
                self._map(source, at)
        local, turned = dict(self.local), dict(self.turned)
        if self.chosen is None:
            choice = self._values(at, [], sym.Analyzer()).choice()
            self.chosen = T.Bind(keep(tirx.Select(choice, tirx.const(1, "int32"), tirx.const(0, "int32"))))
            IRBuilder.name("choice", self.chosen)
        taken = self.chosen != 0
        self.side = sides[0]
        with T.If(taken if self.side else tirx.Not(taken)), T.Then():
            yield
        if stages.kind(tensor) == "map":
            local[tensor] = self.local[tensor]
        self.side, self.local, self.turned = None, local, turned

    def costly_on_one_side(self: Any) -> list[te.Tensor]:
        """Pointwise stages that one side of the choice needs, and that other tiles should not pay for where they are read."""
        branch = self.branch
        if branch is None:
            return []
        found = set.symmetric_difference(*branch.needed.values())
        maps = [t for t in found if stages.kind(t) == "map" and t not in self.memory and self._tiled(t)]
        return [t for t in maps if len(self.inner_of(t)) <= 2 and is_costly(t)]
