"""The stages of a task that owns a key tile, made from those of the query tiles that read it (see `tilegen.plan.regroup`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tvm import ir, te, tirx

from tilegen.autodiff.ranges import analyzer, bind, prune
from tilegen.expression import compute
from tilegen.expression.printer import text
from tilegen.expression.walkers import (
    conjunction,
    const_int,
    factors,
    has_load,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    loads,
    prim,
    rewrite,
    substitute,
    total,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.access import anchors_below
from tilegen.plan.cost import stage_flops
from tilegen.plan.frames import outer
from tilegen.plan.shared_sums import Shared, depth_of, guarded_by


class Gather:
    """The stages of a task that owns a key tile, made from those of the query tiles."""

    def __init__(self, shared: Shared, ready: Collection[te.Tensor]):
        part = shared.parts[0]
        self.ready = ready
        self.outer, self.axis = outer(part.source), part.axis
        self.depth, self.rows = depth_of(part.source), shared.extent
        self.o = [tirx.Var(f"o{k}", "int32") for k in range(len(self.outer))]
        self.r, self.u = tirx.Var("r", "int32"), tirx.Var("u", "int32")
        self.extents: dict[Any, Any] = dict(zip(self.o, self.outer, strict=True))
        self.extents |= {self.r: self.rows, self.u: len(shared.parts) * self.depth}
        self.ana = analyzer(self.extents.items())
        tile, self.member = tirx.floordiv(self.u, self.depth), tirx.floormod(self.u, self.depth)
        self.place = [o + part.shift + tile if k == self.axis else o for k, o in enumerate(self.o)]
        self.row = part.first + tile * shared.step + self.r
        there = self.place[self.axis]
        self.exists = conjunction(prune([there >= 0, there < self.outer[self.axis]], self.ana))
        self.views: dict[Any, tuple[te.Tensor, list[Any]]] = {}
        self.frees: dict[Any, Any] = {}
        self.again: list[te.Tensor] = []

    def stage(self, shared: Shared) -> te.Tensor | None:
        """The stage of `shared` with its parts gathered."""
        source, part = shared.parts[0].source, shared.parts[0]
        rank = len(self.outer)
        own, (step,) = stages.axes(source), stages.reduce_axes(source)
        free = self.variable("x0", own[rank + 1 - (part.inner - rank)], source.shape[rank + 1 - (part.inner - rank)])
        at: dict[Any, Any] = dict(zip(own[:rank], self.place, strict=True)) | {own[part.inner]: self.row, step.var: self.member}
        at[own[rank + 1 - (part.inner - rank)]] = free
        sides = []
        for load in factors(stages.body(source)):
            side = self.read(load_tensor(load), [substitute(i, at) for i in load_indices(load)], operand=True)
            if not is_load(side):
                return None
            sides.append(side)
        if not any(self.r in variables(s) for s in sides) or not all(self.u in variables(s) for s in sides):
            return None
        k = te.reduce_axis((0, self.extents[self.u]), "u")
        order = [self.r, free] if part.inner == rank else [free, self.r]

        def body(*i: Any) -> Any:
            new = dict(zip([*self.o, *order], i, strict=True)) | {self.u: k.var}
            return te.sum(substitute(sides[0], new) * substitute(sides[1], new), axis=[k])

        names = [*(v.name for v in self.o), *(v.name for v in order)]
        shape = [*self.outer, *(self.extents[v] for v in order)]
        gathered = compute(shape, body, f"{source.op.name}_gathered", axes=names)

        def value(*i: Any) -> Any:
            new = dict(zip(stages.axes(shared.stage), i, strict=True))
            inner = [part.row if k == part.inner else part.at[k] for k in range(rank, rank + 2)]
            place = [substitute(x, new) if hasattr(x, "ty") else x for x in [*part.at[:rank], *inner]]
            return total([*(substitute(x, new) for x in shared.rest), gathered(*place)])

        stage = shared.stage
        return compute(list(stage.shape), value, stage.op.name, dict(stage.op.attrs), axes=[v.name for v in stages.axes(stage)])

    def flops(self) -> int:
        """Operations of what is computed again."""
        return sum(stage_flops(stage) for stage in self.again)

    def variable(self, name: str, like: Any, extent: Any) -> Any:
        """A variable that runs below `extent`."""
        var = tirx.Var(name, str(like.ty.dtype))
        self.extents[var] = extent
        bind(self.ana, var, extent)
        return var

    # ---------------------------------------------------------------- stages seen from a key tile

    def read(self, tensor: te.Tensor, at: list[Any], operand: bool = False) -> Any:
        """What the element `at` of a stage is, as a read of its view; an `operand` is zero where there is no such query tile."""
        at = [self.ana.simplify(i) if hasattr(i, "ty") else i for i in at]
        if stages.kind(tensor) == "input":
            return tensor(*at)
        mine = stages.same_extents(outer(tensor), self.outer)
        if stages.kind(tensor) == "map" and tensor not in self.ready and not mine:
            return self.body(tensor, at)  # no stage of a tile: part of what reads it
        met = dict.fromkeys(v for i in at if hasattr(i, "ty") for v in variables(i))
        free = [v for v in met if v not in (*self.o, self.r, self.u)]
        named = {v: self.free(k, self.extents[v]) for k, v in enumerate(free)}
        at = [substitute(i, named) if hasattr(i, "ty") else i for i in at]
        operand = operand and self.r in met and self.u in met
        key = (tensor, operand, tuple(map(text, at)))
        if key not in self.views:
            self.views[key] = self.view(tensor, at, [v for v in (self.r, self.u) if v in met], list(named.values()), operand)
        stage, axes = self.views[key]
        back = {new: old for old, new in named.items()}
        return stage(*self.o, *[back.get(v, v) for v in axes])

    def free(self, k: int, extent: Any) -> Any:
        """The k-th free variable of a view."""
        if (k, text(extent)) not in self.frees:
            self.frees[k, text(extent)] = self.variable(f"x{k}", self.r, extent)
        return self.frees[k, text(extent)]

    def view(
        self, tensor: te.Tensor, at: list[Any], met: list[Any], free: list[Any], operand: bool
    ) -> tuple[te.Tensor, list[Any]]:
        """A stage with the elements of `tensor` that the task needs, and the variables of its inner axes."""
        pair, kind = len(met) == 2, stages.kind(tensor)
        row = met == [self.u] and not free and bool(kind == "reduce" or anchors_below(tensor, self.ready))
        if tensor in self.ready or row or kind in ("scan", "scatter") or (kind == "reduce" and not pair):
            return self.made(tensor, tensor(*at), [*met, *free], [], guard=self.u in met)
        place, over = dict(zip(stages.axes(tensor), at, strict=True)), []
        if kind == "reduce":
            for axis in stages.reduce_axes(tensor):
                over.append(self.variable(f"k{len(self.extents)}", axis.var, axis.dom.extent))
                place[axis.var] = over[-1]
        value = self.resolve(stages.body(tensor), place)
        # What is read elsewhere may be the same for all query tiles: the keys themselves.
        found = set(variables(value)) | {
            v for load in loads(value) for i in load_indices(load) if hasattr(i, "ty") for v in variables(i)
        }
        axes = [v for v in (self.r, self.u) if v in found] + free
        return self.made(tensor, value, axes, over, guard=self.u in axes and not over and (operand or self.r not in axes))

    def made(self, tensor: te.Tensor, value: Any, axes: list[Any], over: list[Any], guard: bool) -> tuple[te.Tensor, list[Any]]:
        """The stage of a `value` over the outer axes and `axes`, summed `over` others; `guard`: zero where there is no query tile."""
        if guard and self.exists is not None:
            value = guarded_by([self.exists], value)

        def body(*i: Any) -> Any:
            new = dict(zip([*self.o, *axes], i, strict=True))
            if not over:
                return substitute(value, new)
            inner = [te.reduce_axis((0, self.extents[v]), v.name) for v in over]
            new |= {v: axis.var for v, axis in zip(over, inner, strict=True)}
            return te.sum(substitute(value, new), axis=inner)

        shape = [*self.outer, *(self.extents[v] for v in axes)]
        stage = compute(shape, body, f"{tensor.op.name}_there", axes=[v.name for v in (*self.o, *axes)])
        if self.r in axes and self.u in axes:
            self.again.append(stage)
        return stage, axes

    def body(self, tensor: te.Tensor, at: Sequence[Any]) -> Any:
        """The value of a pointwise stage at `at`."""
        return self.resolve(stages.body(tensor), dict(zip(stages.axes(tensor), at, strict=True)))

    def resolve(self, expr: Any, at: dict[Any, Any]) -> Any:
        """`expr` at the point `at` of its stage, with every read as it is seen from here."""

        def load(call: Any) -> Any:
            return self.read(load_tensor(call), load_indices(call)) if is_load(call) else call

        value = rewrite(substitute(expr, at), ir.Call, load)
        for kind in (prim.LT, prim.LE, prim.GT, prim.GE):
            value = rewrite(value, kind, self.compared)
        for kind in (prim.And, prim.Or):
            value = rewrite(value, kind, self.joined)
        return value

    def compared(self, condition: Any) -> Any:
        """A comparison of integers in one form, without the quotients and remainders that cancel."""
        if "int" not in str(condition.a.ty.dtype) or has_load(condition):
            return condition
        low, high = (condition.b, condition.a) if isinstance(condition, (prim.GT, prim.GE)) else (condition.a, condition.b)
        apart = high - low - 1 if isinstance(condition, (prim.LT, prim.GT)) else high - low
        zero = tirx.const(0, "int32")
        known = self.ana.simplify(zero <= self.ana.simplify(apart))
        return known if const_int(known) is not None else zero <= self.ana.simplify(apart)

    def joined(self, condition: Any) -> Any:
        """A conjunction or disjunction without what is known."""
        empty, full = (1, 0) if isinstance(condition, prim.And) else (0, 1)  # what changes nothing, and what decides
        sides = [x for x in (condition.a, condition.b) if not is_const(x, empty)]
        for side in sides:
            if is_const(side, full):
                return side
        return condition if len(sides) == 2 else sides[0] if sides else condition.a
