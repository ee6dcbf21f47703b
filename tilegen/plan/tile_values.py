"""What a tile kernel's expressions index: states that move on, turned copies of operands, and stages held for the tile alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import ir, te, tirx

from tilegen.expression.scan import scan_spec
from tilegen.expression.walkers import is_load, rewrite
from tilegen.plan import stages
from tilegen.plan.access import matches
from tilegen.plan.branches import SIDES, Branch
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.tiles import TileKernel


class State:
    """A walked scan as something to index: the current tile's state, or the one before."""

    def __init__(self, scan: te.Tensor, walked: int, at: Any, before: Any, after: Any):
        self.scan, self.walked, self.at, self.before, self.after = scan, walked, at, before, after

    def __getitem__(self, indices: Sequence[Any]) -> Any:
        rest = [i for k, i in enumerate(indices) if k != self.walked]
        here = stages.equal(indices[self.walked], self.at)
        exclusive = scan_spec(self.scan.op).exclusive
        return (self.after if here and not exclusive else self.before)[tuple(rest)]


class Oriented:
    """A tensor with a copy in which axis `moved` comes last; the copy serves reads whose index there is `column`."""

    def __init__(self, natural: Any, turned: Any, moved: int):
        self.natural, self.turned, self.moved = natural, turned, moved
        self.column: Any = None

    def __getitem__(self, indices: Sequence[Any]) -> Any:
        if self.column is not None and stages.equal(indices[self.moved], self.column):
            return self.turned[(*indices[: self.moved], *indices[self.moved + 1 :], indices[self.moved])]
        return self.natural[tuple(indices)]


class TileEvaluator(Evaluator):
    """Values in a tile: every index is simplified before it is used."""

    def __init__(self, kernel: TileKernel, buffers: Mapping[te.Tensor, Any], math: MathRule, point: Sequence[Any], analyzer: Any):
        super().__init__(kernel, buffers, math, point, None, {})
        self.analyzer = analyzer
        self.written = set()
        self.tile: set[te.Tensor] = set()
        self.fixed: dict[int, tuple[Any, Any]] = {}  # outer axis -> (the one place a result reads, the variable that is there)
        self.branch: Branch | None = None
        self.side: bool | None = None  # the side of the choice that is known to be taken
        self.chosen: Any = None  # the choice as a variable, once it is known
        self.located: Callable[[te.Tensor, Any], Any] | None = None  # where tables place an element, by the task's own variables

    def element(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        """One element, at simplified indices.

        What the tile holds is only there at the tile's own outer point, so a fixed place is read as the variable that is there.
        """
        at = [self.analyzer.simplify(i) if hasattr(i, "ty") else i for i in indices]
        known = None if self.located is None else self.located(tensor, at[0])
        if known is not None:
            return known
        if tensor in self.tile:
            for axis, (place, here) in self.fixed.items():
                if stages.equal(at[axis], place):
                    at[axis] = here
            # A pointwise stage is held for this tile alone: elsewhere it is computed where it is read.
            here = [self.analyzer.simplify(i) for i in self.point[: len(self.kernel.space)]]
            if stages.kind(tensor) == "map" and not matches(at[: len(here)], here):
                return self._stage(tensor, at)
        value = super().element(tensor, at)
        sides = SIDES if self.branch is None else self.branch.sides(tensor)
        if len(sides) == 2 or self.side == sides[0]:
            return value
        if self.side is not None:
            return tirx.const(0, str(tensor.dtype))
        # Nothing that is multiplied with it there may be infinite.
        taken = self.choice()
        return tirx.Select(taken if sides[0] else tirx.Not(taken), value, tirx.const(0, str(tensor.dtype)))

    def choice(self) -> Any:
        """The kernel's choice in this tile."""
        branch = self.branch
        assert branch is not None
        if self.chosen is not None:
            return self.chosen != 0
        outer = list(self.point[: branch.rank])
        return self._resolve(rewrite(branch.condition, ir.Call, lambda call: branch.flag(*outer) if is_load(call) else call))

    def resolved(self, read: Any) -> Any:
        """The value of a read of any stage."""
        return self._resolve(read)

    def bound_to(self, name: str, value: Any) -> Any:
        """A value as a variable."""
        return self._bind(name, value)
