"""Which stages a block holds, and what the nest of each reads of the others.

A stage is *held* when it needs loops of its own (a reduction, a scan, a state), when it is an operand of a contraction, when
it is costly and read more than once, or when a loop reads it from memory again and again; everything else is computed where it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tvm import ir, sym, te, tirx

from tilegen.errors import PlanError
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import (
    call_name,
    const_int,
    factors,
    find,
    is_load,
    load_indices,
    load_tensor,
    loads,
    rewrite,
    substitute,
)
from tilegen.plan import stages
from tilegen.plan.access import scan_reads, stage_reads
from tilegen.plan.branches import branch_of
from tilegen.plan.frames import outer_rank
from tilegen.plan.gpu.layout import Layout, padded
from tilegen.plan.gpu.values import is_function
from tilegen.plan.tiles import TileKernel

Way = Literal["flat", "fragment", "rows", "rowstat", "contract"]


@dataclass(frozen=True)
class Read:
    """A read of a held stage: its inner indices in the reader's variables, and whether it is the step before.

    `side` is the side of the kernel's choice on which it is read (see `tilegen.plan.branches`), None for both.
    """

    source: te.Tensor
    at: tuple[Any, ...]
    earlier: bool = False
    side: bool | None = None


@dataclass(frozen=True)
class Operand:
    """One side of a contraction; `turned` when the contracted axis comes first in the stage."""

    source: te.Tensor
    turned: bool


@dataclass(eq=False)
class Node:
    """One nest of the program.

    Parameters
    ----------
    role : "load" (reads memory alone), "map", "reduce", "scan" (inside the tile), "state" (carried along the walk), "emit", "fused"
        (a product that a state accumulates).
    own, over : variables of its inner axes and of its reduced axes.
    extents : of its inner axes, as far as one block computes them.
    sides : the sides of the kernel's choice on which it is needed; `split` when it differs between the two.
    cut : the inner axis of which a block computes only a part (see `Program.cuts`), or None.
    """

    tensor: te.Tensor
    role: str
    own: list[Any]
    extents: list[int]
    over: list[Any] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    way: Way = "flat"
    layout: Layout | None = None
    operands: tuple[Operand, Operand] | None = None
    position: int = 0
    from_memory: bool = False
    cut: int | None = None
    sides: tuple[bool, ...] = (True, False)
    split: bool = False

    @property
    def tile(self) -> tuple[int, ...]:
        """The extents in shared memory: matrices are padded."""
        return tuple(padded(n) for n in self.extents) if len(self.extents) == 2 else tuple(self.extents)

    @property
    def name(self) -> str:
        """For generated code."""
        return str(self.tensor.op.name).replace(".", "_")


@dataclass(eq=False)
class Held:
    """Where a held stage lives; `sides` says for "wide" and "narrow" on which sides of the kernel's choice somebody reads that."""

    node: Node
    registers: bool = False
    wide: bool = False
    narrow: bool = False
    earlier: bool = False
    sides: dict[str, set[bool]] = field(default_factory=dict)

    def settle(self, alike: bool) -> None:
        """It lives somewhere; of two copies that are `alike` in size the exact one stays."""
        if alike and self.wide and self.narrow:
            self.narrow = False
            self.sides["wide"] |= self.sides.pop("narrow")
        self.wide = self.wide or not (self.registers or self.narrow)


def place_of(kernel: TileKernel, tensor: te.Tensor, at: list[Any], outer: list[Any], fixed: dict[int, Any]) -> str | None:
    """Where a read at `at` lies from a block's point `outer`: "here", "earlier" (the step before of a state), or None for elsewhere.

    `fixed` has the outer axes at which a result exists at one place only: a read at that place is here.
    """
    found = "here"
    for k, own in enumerate(outer):
        if stages.equal(at[k], own) or (k in fixed and stages.equal(at[k], fixed[k])):
            continue
        before = own + 1 if kernel.reverse else own - 1
        if k != kernel.walked or tensor not in kernel.anchors or not stages.equal(at[k], before):
            return None
        found = "earlier"
    return found


class Holding:
    """The held stages of a tile kernel, each with its nest, and a nest for every result.

    Parameters
    ----------
    memory : what is read from memory.
    """

    def __init__(self, kernel: TileKernel, memory: set[te.Tensor]):
        self.kernel, self.memory = kernel, memory
        self.rank = len(kernel.space)
        self.analyzer = sym.Analyzer()
        # An axis of one element has no variable: expressions have its 0 already.
        self.outer = [tirx.const(0, "int32") if const_int(n) == 1 else tirx.Var(f"o{k}", "int32") for k, n in enumerate(kernel.space)]
        for var, extent in zip(self.outer, kernel.space, strict=True):
            if const_int(extent) != 1:
                self.analyzer.bind(var, ir.Range(0, extent))
        self.nodes: dict[te.Tensor, Node] = {}
        self.emits: list[Node] = []
        self.fixed: dict[int, Any] = {}
        self.sources: dict[te.Tensor, bool] = {}
        self.located: Callable[[te.Tensor, Any], Any] | None = None  # where tables place an element, by the block's own variables
        computed = {*kernel.locals, *kernel.anchors, *kernel.emits}
        self.branch = branch_of([*kernel.emits, *kernel.anchors], memory - computed, kernel.space)
        self._hold()

    def _hold(self) -> None:
        kernel = self.kernel
        self.operands: dict[te.Tensor, tuple[Operand, Operand]] = {}
        kept = [*kernel.locals, *kernel.anchors]
        for tensor in kernel.locals:
            found = self._contraction(tensor)
            if found:
                self.operands[tensor] = found
                kept += [side.source for side in found if side.source not in kept]
        while True:
            self.nodes = {}
            self.direct: dict[te.Tensor, set[Any]] = {}
            self.repeated: list[te.Tensor] = []
            self.keep = set(kept)
            for tensor in kept:
                self.nodes[tensor] = self._node(tensor)
            self.emits = [self._emit(tensor) for tensor in kernel.emits]
            more = [
                t
                for t, readers in self.direct.items()
                if len(readers) > 1 and t not in self.keep and (_costly(t) or self.chooses(t)) and len(self.inner(t)) <= 2
            ]
            more += [t for t in dict.fromkeys(self.repeated) if t not in self.keep and t not in more]
            if not more:
                return
            kept += more

    def chooses(self, tensor: te.Tensor) -> bool:
        """Whether a stage is a choice about an element of a product, as a mask is: every reader would make it again."""
        body = stages.body(tensor) if stages.kind(tensor) == "map" else None
        return call_name(body) == "if_then_else" and any(t in self.operands for t, _ in stages.reads(tensor))

    def inner(self, tensor: te.Tensor) -> list[int]:
        """The extents inside the tile."""
        return [int(const_int(n)) for n in list(tensor.shape)[self.rank :]]

    def tiled(self, tensor: te.Tensor) -> bool:
        """Whether a stage has one tile for every outer point of the kernel."""
        return outer_rank(tensor) == self.rank and stages.same_extents(list(tensor.shape)[: self.rank], self.kernel.space)

    def _contraction(self, tensor: te.Tensor) -> tuple[Operand, Operand] | None:
        """The operands of a sum of products over one axis with a two-dimensional result, else None."""
        if stages.kind(tensor) != "reduce" or stages.reduction(tensor) != "sum" or len(self.inner(tensor)) != 2:
            return None
        over, parts = stages.reduce_axes(tensor), factors(stages.body(tensor))
        if len(over) != 1 or len(parts) != 2 or not all(is_load(p) for p in parts):
            return None
        own, step = stages.axes(tensor), over[0].var
        rows, columns = own[self.rank :]
        sides: dict[int, Operand] = {}
        for part in parts:
            source, at = load_tensor(part), load_indices(part)
            if (
                not self.tiled(source)
                or len(at) != self.rank + 2
                or not all(a.same_as(b) for a, b in zip(at, own[: self.rank], strict=False))
            ):
                return None
            if (
                scan_spec(source.op) is None
                and stages.kind(source) == "reduce"
                and source not in self.kernel.locals
                and source not in self.memory
            ):
                return None
            a, b = at[self.rank :]
            for k, free in enumerate((rows, columns)):
                if isinstance(a, tirx.Var) and isinstance(b, tirx.Var) and {a, b} == {free, step}:
                    sides[k] = Operand(source, a.same_as(step))
        return (sides[0], sides[1]) if len(sides) == 2 else None

    def _fresh(self, extents: list[int], prefix: str) -> list[Any]:
        found = [tirx.Var(f"{prefix}{k}", "int32") for k in range(len(extents))]
        for var, extent in zip(found, extents, strict=True):
            self.analyzer.bind(var, ir.Range(0, extent))
        return found

    def _node(self, tensor: te.Tensor) -> Node:
        extents, kind = self.inner(tensor), stages.kind(tensor)
        own = self._fresh(extents, "i")
        if tensor in self.memory and tensor not in self.kernel.locals and tensor not in self.kernel.anchors:
            return Node(tensor, "load", own, extents, from_memory=True)
        if kind == "reduce":
            over = self._fresh([int(const_int(a.dom.extent)) for a in stages.reduce_axes(tensor)], "r")
            node = Node(tensor, "reduce", own, extents, over)
            mapping = {axis.var: var for axis, var in zip(stages.reduce_axes(tensor), over, strict=True)}
            point = [*self.outer, *own]
            self._follow(
                node, lambda side: [(t, [substitute(i, mapping) for i in at]) for t, at in self._side_reads(tensor, point, side)]
            )
            return node
        if kind == "scan":
            node = Node(tensor, "state" if tensor in self.kernel.anchors else "scan", own, extents)
            reads = scan_reads(tensor, [*self.outer, *own])
            initial = scan_inputs(tensor.op).get("initial")
            if node.role == "state":
                reads = [(t, at) for t, at in reads if t is not initial]
            self._follow(node, lambda _: reads)
            return node
        node = Node(tensor, "map", own, extents)
        self._follow(node, lambda side: self._side_reads(tensor, [*self.outer, *own], side))
        if not node.reads:
            node.role = "load"
        return node

    def _emit(self, tensor: te.Tensor) -> Node:
        frame = self.kernel.frames[tensor]
        extents = [int(const_int(n)) for n in frame.inner_extents(tensor)]
        node = Node(tensor, "emit", self._fresh(extents, "w"), extents)
        self.fixed = dict(frame.fixed)
        elements = {k: tirx.Var(f"e{k}", "int32") for k in frame.ragged}
        plain = frame.indices(list(self.outer), list(node.own), dict.fromkeys(elements, 0))
        indices = [elements.get(k, index) for k, index in enumerate(plain)]
        if elements:
            self.located = lambda placing, index: frame.located(placing, index, list(self.outer), list(node.own), elements)
        if tensor in self.keep:
            self._follow(node, lambda _: [(tensor, indices)])
        else:
            self._follow(node, lambda side: self._side_reads(tensor, indices, side))
        self.located = None
        self.fixed = {}
        return node

    def _side_reads(self, tensor: te.Tensor, at: list[Any], side: bool | None) -> list[tuple[te.Tensor, list[Any]]]:
        """What element `at` of a stage reads, on one side of the kernel's choice or (None) on either."""
        branch = self.branch
        if branch is None or side is None or not branch.differs(tensor) or not self.here(at):
            return stage_reads(tensor, at)
        found = loads(branch.assumed(stages.body(tensor), side, branch.own(tensor)))
        mapping = dict(zip(stages.axes(tensor), at, strict=True))
        return [(load_tensor(read), [substitute(i, mapping) for i in load_indices(read)]) for read in found]

    def here(self, at: list[Any]) -> bool:
        """Whether a stage is read at the block's own outer point."""
        own = zip(at[: self.rank], self.outer, strict=False)
        return len(at) >= self.rank and all(
            stages.equal(i, o) or (k in self.fixed and stages.equal(i, self.fixed[k])) for k, (i, o) in enumerate(own)
        )

    def _follow(self, node: Node, reads: Callable[[bool | None], list[tuple[te.Tensor, list[Any]]]]) -> None:
        """Record what `node` reads of held stages, through everything that is computed where it is read, on each side of the choice."""
        if self.branch is None:
            self._follow_side(node, reads(None), None)
            return
        if node.role not in ("emit", "state"):
            node.sides = self.branch.sides(node.tensor)
        both: dict[bool, list[Read]] = {}
        node.split = self.branch.differs(node.tensor)
        for side in node.sides:
            node.reads = []
            self._follow_side(node, reads(side), side)
            both[side] = node.reads
        node.split = node.split and len(node.sides) == 2
        alike = lambda a, b: a.source in {b.source} and a.earlier == b.earlier and str(a.at) == str(b.at)  # noqa: E731
        node.reads = []
        for side, found in both.items():
            for read in found:
                common = len(both) == 2 and any(alike(read, other) for other in both[not side])
                if not common:
                    node.reads.append(replace(read, side=side))
                elif side:
                    node.reads.append(read)

    def _follow_side(self, node: Node, reads: list[tuple[te.Tensor, list[Any]]], side: bool | None) -> None:
        stack: list[tuple[Any, te.Tensor, list[Any]]] = [(node, t, at) for t, at in reads]
        seen: set[str] = set()
        while stack:
            reader, tensor, at = stack.pop()
            at = [self.analyzer.simplify(self._placed(i)) if hasattr(i, "ty") else i for i in at]
            if self.located is not None and at and self.located(tensor, at[0]) is not None:
                continue
            key = f"{hash(tensor)} {at}"
            if tensor in self.keep:
                place = self.aligned(tensor, at)
                if place is not None:
                    node.reads.append(Read(tensor, tuple(at[self.rank :]), place == "earlier"))
                    continue
            if stages.kind(tensor) == "map" and tensor not in self.memory:
                if self.tiled(tensor) and self.aligned(tensor, at):
                    self.direct.setdefault(tensor, set()).add(reader)
                    # A reduction or scan reads an element many times, or waits for it: from memory that takes long.
                    loops = node.role == "scan" or (node.role == "reduce" and node.tensor not in self.operands)
                    # So does every element of a row with what is costly and the same for the row.
                    if node.role == "map" and len(node.own) == 2 and len(self.inner(tensor)) == 1 and _costly(tensor):
                        self.repeated += [tensor] if stages.equal(at[-1], node.own[0]) else []
                    # So does every row of a tile with the element of its column.
                    loops = loops or (len(self.inner(tensor)) == 1 and len(node.own) == 2 and stages.equal(at[-1], node.own[1]))
                    if loops and len(self.inner(tensor)) in (1, 2) and (self._from_memory(tensor) or side is not None):
                        self.repeated.append(tensor)
                if key not in seen:
                    seen.add(key)
                    node.split = node.split or (self.branch is not None and self.branch.differs(tensor))
                    stack += [(tensor, t, i) for t, i in self._side_reads(tensor, at, side)]
            elif tensor not in self.memory:
                raise PlanError(f"kernel '{self.kernel.name}' needs stage '{tensor.op.name}', which no kernel before it writes")

    def _placed(self, index: Any) -> Any:
        """`index` with what tables say of the result's own element replaced by the block's variables."""
        located = self.located
        if located is None:
            return index

        def place(call: Any) -> Any:
            known = located(load_tensor(call), load_indices(call)[0]) if is_load(call) else None
            return call if known is None else known

        return rewrite(index, ir.Call, place)

    def _from_memory(self, tensor: te.Tensor) -> bool:
        """Whether a pointwise stage reads nothing but memory."""
        if tensor not in self.sources:
            reads = stage_reads(tensor, list(stages.axes(tensor)))
            self.sources[tensor] = bool(reads) and all(
                t in self.memory or (stages.kind(t) == "map" and t not in self.keep and self._from_memory(t)) for t, _ in reads
            )
        return self.sources[tensor]

    def aligned(self, tensor: te.Tensor, at: list[Any]) -> str | None:
        """Where a read of a stage at `at` lies; see `place_of`."""
        return place_of(self.kernel, tensor, at, self.outer, self.fixed)


def _costly(tensor: te.Tensor) -> bool:
    body = stages.body(tensor)
    return bool(find(body, is_function))
