"""What a tile computes only where it must: stages behind a choice that is the same for the whole tile.

A tile may have two ways to compute something, a fast one that is right for most tiles and one that is always right, and choose
between them by a number of its own (`flag`, a stage without axes inside the tile)::

    y = if_then_else(flag[b, h, c] >= x, fast, safe)

A stage that only one side reads is computed where that side is taken.  So is what is zero on the other side, as is the adjoint of
each side: `if_then_else(..., dy, 0)`, and all products with it.  Conditions on one flag per kernel are branches; others are values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

from tvm import ir, te, tirx

from tilegen.expression.scan import scan_inputs
from tilegen.expression.walkers import (
    call_name,
    const_int,
    dtype_of,
    find,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    loads,
    prim,
    rewrite,
    same,
)
from tilegen.plan import stages

SIDES = (True, False)
Here = Callable[[list[Any]], bool]
"""Whether outer indices are those of the tile being computed."""


class Branch:
    """The choice of one kernel and what depends on it.

    Parameters
    ----------
    condition : as some stage has it, a comparison of `flag` with a constant.
    results : what the kernel writes and carries.
    memory : what is read from memory.
    rank : the number of outer axes.
    """

    def __init__(self, condition: Any, results: Sequence[te.Tensor], memory: Collection[te.Tensor], rank: int):
        self.condition, self.memory, self.rank = condition, memory, rank
        self.flag = load_tensor(loads(condition)[0])
        self.zero: dict[bool, set[te.Tensor]] = {side: set() for side in SIDES}
        self.known: dict[te.Tensor, bool] = {}
        for tensor in _below(results, memory):
            for side in SIDES:
                if stages.kind(tensor) in ("map", "reduce") and self._vanishes(tensor, side):
                    self.zero[side].add(tensor)
        self.needed = {side: self._reach([*results, self.flag], side) for side in SIDES}

    def sides(self, tensor: te.Tensor) -> tuple[bool, ...]:
        """The sides of the choice on which a stage is needed."""
        found = tuple(side for side in SIDES if tensor in self.needed[side])
        return found or SIDES

    def assumed(self, expr: Any, side: bool, here: Here) -> Any:
        """`expr` where the choice is known to fall on `side`; `here` tells the reads at the tile's own point."""
        if not self._depends(expr, [side]):
            return expr

        def decide(comparison: Any) -> Any:
            known = _alike(comparison, self.condition) and here(load_indices(comparison.a)[: self.rank])
            return tirx.const(side, "bool") if known else comparison

        def change(call: Any) -> Any:
            if is_load(call):
                nothing = load_tensor(call) in self.zero[side] and here(load_indices(call)[: self.rank])
                return tirx.const(0, dtype_of(call)) if nothing else call
            known = const_int(call.args[0]) if call_name(call) == "if_then_else" else None
            return call if known is None else call.args[1 if known else 2]

        expr = rewrite(expr, type(self.condition), decide)
        expr = rewrite(expr, prim.Not, lambda e: e if const_int(e.a) is None else tirx.const(not const_int(e.a), "bool"))
        expr = rewrite(expr, prim.And, _conjunction)
        return self._folded(rewrite(expr, ir.Call, change))

    @staticmethod
    def _folded(expr: Any) -> Any:
        """`expr` without products with zero."""
        nothing = lambda e: is_const(e, 0)  # noqa: E731

        def fold(e: Any) -> Any:
            if isinstance(e, prim.Mul):
                empty = nothing(e.a) or nothing(e.b)
            elif isinstance(e, prim.Add):
                return e.b if nothing(e.a) else e.a if nothing(e.b) else e
            elif isinstance(e, prim.Cast):
                empty = nothing(e.value)
            else:
                empty = call_name(e) == "if_then_else" and nothing(e.args[1]) and nothing(e.args[2])
            return tirx.const(0, dtype_of(e)) if empty else e

        return rewrite(expr, ir.Expr, fold)

    def _depends(self, expr: Any, sides: Sequence[bool]) -> bool:
        """Whether an expression asks for the choice, or reads what is zero on one of `sides`."""
        reads_zero = lambda e: is_load(e) and any(load_tensor(e) in self.zero[side] for side in sides)  # noqa: E731
        return bool(find(expr, lambda e: _alike(e, self.condition) or reads_zero(e)))

    def differs(self, tensor: te.Tensor) -> bool:
        """Whether a stage's own expression depends on the choice."""
        if tensor not in self.known:
            self.known[tensor] = stages.kind(tensor) in ("map", "reduce") and self._depends(stages.body(tensor), SIDES)
        return self.known[tensor]

    def own(self, tensor: te.Tensor) -> Here:
        """The point at which a stage is computed, in its own axes; a result outside tiles reads its own tile."""
        if stages.kind(tensor) not in ("map", "reduce") or len(tensor.shape) < self.rank:
            return lambda _: True
        own = stages.axes(tensor)[: self.rank]
        return lambda at: all(stages.equal(a, b) for a, b in zip(at, own, strict=True))

    def _vanishes(self, tensor: te.Tensor, side: bool) -> bool:
        if stages.kind(tensor) == "reduce" and stages.reduction(tensor) != "sum":
            return False
        return is_const(self.assumed(stages.body(tensor), side, self.own(tensor)), 0)

    def _reach(self, results: Sequence[te.Tensor], side: bool) -> set[te.Tensor]:
        """Everything that the results need on one side; what is read at another tile is needed on both."""
        seen: set[te.Tensor] = set()
        stack = list(results)
        while stack:
            tensor = stack.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if stages.kind(tensor) in ("map", "reduce"):
                body = self.assumed(stages.body(tensor), side, self.own(tensor))
                stack += [load_tensor(read) for read in loads(body)]
            elif stages.kind(tensor) == "scan":
                stack += list(scan_inputs(tensor.op).values())
        return seen


def branch_of(results: Sequence[te.Tensor], memory: Collection[te.Tensor], space: Sequence[Any]) -> Branch | None:
    """The choice that a kernel over outer extents `space` can take as a branch, or None."""
    rank = len(space)
    for tensor in _below(results, memory):
        if stages.kind(tensor) not in ("map", "reduce"):
            continue
        for condition in _conditions(tensor):
            flag = load_tensor(loads(condition)[0])
            if stages.same_extents(list(flag.shape), list(space)) and stages.kind(flag) == "reduce" and len(flag.shape) == rank:
                return Branch(condition, results, memory, rank)
    return None


@lru_cache(maxsize=1 << 14)
def _conditions(tensor: te.Tensor) -> list[Any]:
    """The comparisons of one element of a reduction with a constant, in a stage."""
    return find(stages.body(tensor), _is_comparison)


def _conjunction(both: Any) -> Any:
    for one, other in ((both.a, both.b), (both.b, both.a)):
        if const_int(one) is not None:
            return other if const_int(one) else one
    return both


def _is_comparison(condition: Any) -> bool:
    if not isinstance(condition, (prim.GE, prim.LE, prim.GT, prim.LT)) or len(loads(condition)) != 1:
        return False
    return is_load(condition.a) and not is_load(condition.b) and stages.kind(load_tensor(condition.a)) == "reduce"


def _alike(a: Any, b: Any) -> bool:
    """Whether two conditions compare the same flag with the same constant, wherever they read it."""
    if type(a) is not type(b) or not _is_comparison(a):
        return False
    return load_tensor(a.a) in {load_tensor(b.a)} and same(a.b, b.b)


def _below(results: Sequence[te.Tensor], memory: Collection[te.Tensor]) -> list[te.Tensor]:
    """The stages that a kernel computes, inputs first."""
    order: list[te.Tensor] = []
    seen: set[te.Tensor] = set()
    stack: list[tuple[te.Tensor, bool]] = [(t, False) for t in results]
    first = set(results)
    while stack:
        tensor, ready = stack.pop()
        if ready:
            order.append(tensor)
        elif tensor not in seen and (tensor not in memory or tensor in first):
            seen.add(tensor)
            stack.append((tensor, True))
            stack += [(source, False) for source, _ in stages.reads(tensor)]
    return order
