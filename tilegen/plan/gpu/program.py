"""What a block of a tile kernel computes, stage by stage: which stages are held, how, and who reads them where.

A stage is *held* when it needs loops of its own (a reduction, a scan, a state), when it is an operand of a contraction, or
when it is costly and read more than once; everything else is computed where it is read.  Held stages live in registers (in
a `Layout`), in shared memory, or both; which, follows from where they are read:

* contractions leave their result in registers, and what is computed from it element by element stays there;
* a sum or maximum over the columns of such a tile is a row vector, held by all lanes of the row;
* an operand of a contraction comes from shared memory, unless it is in registers as the tensor cores want it;
* a read anywhere else goes through shared memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import networkx
from tvm import te

from tilegen.errors import PlanError
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import call_name, const_int, is_load, load_tensor, prim
from tilegen.plan import stages
from tilegen.plan.gpu import band, sums
from tilegen.plan.gpu.holding import Held, Holding, Node, Operand, Read
from tilegen.plan.gpu.layout import PAD, TF32, layout, squarer
from tilegen.plan.tiles import TileKernel

NARROW = {"float16", "bfloat16"}
CHAIN = 16
"""Steps of a matrix product whose terms threads add to one sum, one after the other."""


class Program(Holding):
    """The nests of one step of a tile kernel, in order, and where each held stage lives."""

    def __init__(
        self, kernel: TileKernel, memory: set[te.Tensor], warps: int, narrow: str | None, parts: int = 1, across: int = 1
    ):
        super().__init__(kernel, memory)
        self.warps, self.narrow, self.parts, self.across = warps, narrow, parts, across
        self._order()
        self.cuts = self._cuts()
        if parts > 1:
            self._cut()
        # A result may read a state that only follows later in the order: as many passes as it takes.
        for _ in range(3):
            for node in self.steps:
                self._way(node)
        self._fuse()
        self.precise = self._precise()
        self._turn()
        self.outside = band.narrow(self) if narrow is not None else {}
        self.held = {tensor: Held(node) for tensor, node in self.nodes.items()}
        self._home()
        self.onto = sums.joined(self)

    # ---------------------------------------------------------------- order

    def _order(self) -> None:
        """Loads first, each result as soon as it can be written; a state that others read before its step moves on last."""
        order = self.kernel.order
        if self.branch is not None:
            # What is needed on one side only waits until the choice is known.
            choice = order[self.branch.flag]
            order = {
                t: (k if t not in self.nodes or len(self.nodes[t].sides) == 2 else max(k, choice), k) for t, k in order.items()
            }
        late = {t for t in self.kernel.anchors if scan_spec(t.op).exclusive}
        first = sorted((n for n in self.nodes.values() if n.role == "load"), key=lambda n: order[n.tensor])
        middle = sorted(
            (n for n in self.nodes.values() if n.role != "load" and n.tensor not in late), key=lambda n: order[n.tensor]
        )
        last = sorted((self.nodes[t] for t in late), key=lambda n: order[n.tensor])
        steps = [*first, *middle]
        waiting = list(self.emits)
        done: list[Node] = []
        for node in [None, *steps]:
            if node is not None:
                done.append(node)
            known = {n.tensor for n in done} | late
            for emit in [e for e in waiting if all(r.source in known for r in e.reads)]:
                waiting.remove(emit)
                done.append(emit)
        self.steps = [*done, *waiting, *last]
        for k, node in enumerate(self.steps):
            node.position = k

    # ---------------------------------------------------------------- parts

    def _cuts(self) -> tuple[dict[int, int], int] | None:
        """The widest axis of every result that no stage reduces over, so that blocks can share it out.

        Returns
        -------
        The axis of every nest that has it, by position, and its extent; None when there is no such axis.
        """
        known = networkx.utils.UnionFind()
        bad: list[Any] = []
        for node in self.steps:
            keys = {var: (node.position, k) for k, var in enumerate(node.own)}
            keys |= {var: (node.position, "over", k) for k, var in enumerate(node.over)}
            bad += [key for key in keys.values() if key[1] == "over"]
            if node.role == "scan":
                bad.append((node.position, scan_spec(node.tensor.op).axis - self.rank))
            for read in node.reads:
                place = self.nodes[read.source].position
                for k, index in enumerate(read.at):
                    var = next((v for v in keys if hasattr(index, "same_as") and index.same_as(v)), None)
                    if var is None:
                        bad.append((place, k))
                    else:
                        known.union((place, k), keys[var])
        forbidden = {known[key] for key in bad}
        groups: dict[Any, dict[int, int]] = {}
        for node in self.steps:
            for axis, extent in enumerate(node.extents):
                group = known[node.position, axis]
                if group in forbidden:
                    continue
                axes = groups.setdefault(group, {})
                if node.position in axes or any(self.steps[n].extents[k] != extent for n, k in axes.items()):
                    forbidden.add(group)
                axes[node.position] = axis
        choices = [[groups[g] for k in range(len(e.extents)) if (g := known[e.position, k]) not in forbidden] for e in self.emits]
        return self._widest(choices)

    def _widest(self, choices: list[list[dict[int, int]]]) -> tuple[dict[int, int], int] | None:
        """The widest of the axes that results can be cut along, one of the `choices` for each; of equal ones that of the columns.

        Results that share no stage along their axes (the keys' and the values' gradients of a tile) are cut each along its own.
        """
        found: list[tuple[tuple[int, int], dict[int, int]]] = []
        for chosen in itertools.product(*choices):
            apart = [axes for k, axes in enumerate(chosen) if not any(axes is known for known in chosen[:k])]
            together = {position: axis for axes in apart for position, axis in axes.items()}
            extents = {self.steps[position].extents[axis] for position, axis in together.items()}
            if len(extents) == 1 and len(together) == sum(map(len, apart)):
                found.append(((extents.pop(), together[self.emits[0].position]), together))
        return None if not found else (lambda best: (best[1], best[0][0]))(max(found, key=lambda f: f[0]))

    def _cut(self) -> None:
        cuts = self.cuts
        if cuts is None or cuts[1] % (PAD * self.parts):
            raise PlanError(f"kernel '{self.kernel.name}' cannot be shared out over {self.parts} parts; choose 1")
        for node in self.steps:
            if node.position in cuts[0]:
                node.cut = cuts[0][node.position]
                node.extents = [n // self.parts if k == node.cut else n for k, n in enumerate(node.extents)]

    # ---------------------------------------------------------------- how each is computed

    def _way(self, node: Node) -> None:
        if node.tensor in self.operands and node.role == "reduce":
            node.way, node.operands = "contract", self.operands[node.tensor]
            node.layout = layout(node.extents[0], node.extents[1], self.warps, self.narrow is not None, self.across)
            # Rows stay within a warp where that is possible and wanted; elsewhere what counts is how often operands are loaded.
            walks = self.narrow is not None and self.kernel.walked is not None and not self.kernel.only_products()
            if walks and (node.layout.across > 1 or sums.only_added(self, node)):
                node.layout = squarer(node.layout)
            return
        if node.role in ("load", "scan"):
            return
        point = (*node.own, *node.over) if node.role == "reduce" else tuple(node.own)
        if len(point) == 2 and (node.role != "reduce" or len(node.own) == 1):
            for read in node.reads:
                source = self.nodes[read.source]
                if source.layout is None or source.way not in ("fragment", "contract") or not _is(read.at, point):
                    continue
                if source.layout.rows != self._extent(point[0], node) or source.layout.columns != self._extent(point[1], node):
                    continue
                if node.role == "reduce" and source.layout.across > 1:
                    continue
                node.way, node.layout = ("rowstat" if node.role == "reduce" else "fragment"), source.layout
                return
        if len(point) == 1 and node.role in ("map", "emit"):
            for read in node.reads:
                source = self.nodes[read.source]
                if source.way in ("rows", "rowstat") and _is(read.at, point) and source.extents == node.extents:
                    node.way, node.layout = "rows", source.layout
                    return

    def _fuse(self) -> None:
        """A product that is only added to a state in registers is accumulated there, when the state moves on."""
        readers: dict[te.Tensor, list[Node]] = {}
        for node in self.steps:
            for read in node.reads:
                readers.setdefault(read.source, []).append(node)
        free: list[Node] = []
        for node in [n for n in self.steps if n.role == "state" and n.way == "fragment"]:
            spec, x = scan_spec(node.tensor.op), scan_inputs(node.tensor.op)["x"]
            product = self.nodes.get(x)
            if spec.kind != "sum" or product is None or product.way != "contract" or readers[x] != [node] or self._is_long(node):
                continue
            node.operands, product.role = product.operands, "fused"
            self.steps.remove(product)
            # Others read the copy in shared memory, so that the state may move on at any time.
            if {r.source for r in node.reads} <= {product.tensor} and all(
                n is node or n.way == "contract" for n in readers.get(node.tensor, [])
            ):
                free.append(node)
        self._hasten(free)
        for k, node in enumerate(self.steps):
            node.position = k

    def _is_long(self, node: Node) -> bool:
        """Whether a matrix product is added up over so many steps that float32 wants a sum for each, which is then added."""
        steps = const_int(self.kernel.extent)
        return self.narrow is None and self.kernel.only_products() and (steps is None or steps > CHAIN)

    def _hasten(self, free: list[Node]) -> None:
        """Products of what is loaded come first, those of states in `free` too: tensor cores work on them while threads mask scores.

        Only where a step is nothing but products and what follows from them: elsewhere their results would crowd the registers.
        """
        # Without a walk other blocks of the multiprocessor compute meanwhile, and the registers decide how many those are.
        if self.narrow is None or self.kernel.walked is None or any(n.way == "flat" and n.role != "load" for n in self.steps):
            return
        given = {n.tensor for n in self.steps if n.role in ("load", "state")}
        ready = [n for n in self.steps if n.way == "contract" and all(o.source in given for o in n.operands or ())]
        ready += [n for n in free if all(o.source in given for o in n.operands or ())]
        loads = [n for n in self.steps if n.role == "load"]
        self.steps = [*loads, *ready, *[n for n in self.steps if n not in loads and n not in ready]]

    def _turn(self) -> None:
        """A tile that contractions over its first axis take as their left operand is computed with that axis along the columns.

        Its registers are then those of the operand, as `in_registers` wants them.
        """
        if self.narrow is None:
            return
        done: set[Node] = set()
        for first in [n for n in self.steps if n.way == "contract" and n.operands is not None]:
            tile = self._tile_of(first)
            turned = [
                self._as_left(node, reader)
                for node in tile
                for reader in self.steps
                if reader not in tile and self._takes(reader, node)
            ]
            if first in done or not turned or not all(turned) or not tile.isdisjoint(self.precise):
                continue
            rows, columns = first.extents
            across = layout(columns, rows, self.warps, True)
            for node in tile:
                node.layout = dataclasses.replace(across, turned=True)
                if node.operands is not None:
                    node.operands = (node.operands[1], node.operands[0])
                done.add(node)

    def _tile_of(self, first: Node) -> set[Node]:
        """The contraction and what is computed element by element from it and others alike, all in one layout."""
        found, stack = {first}, [first]
        while stack:
            node = stack.pop()
            for other in self.steps:
                joined = (other.way == "fragment" and self._takes(other, node)) or (
                    node.way == "fragment" and self._takes(node, other)
                )
                if joined and other.way in ("fragment", "contract") and other not in found and self._at_its_place(node, other):
                    found.add(other)
                    stack.append(other)
        return found

    def _at_its_place(self, one: Node, other: Node) -> bool:
        """Whether a tile reads another element by element."""
        reads = [
            (a, r) for a, b in ((one, other), (other, one)) for r in a.reads if self.nodes[r.source] is b and a.way == "fragment"
        ]
        return bool(reads) and all(_is(r.at, tuple(a.own)) for a, r in reads)

    def _takes(self, reader: Node, node: Node) -> bool:
        sources = [*[r.source for r in reader.reads], *[o.source for o in reader.operands or ()]]
        return any(self.nodes[source] is node for source in sources)

    def _as_left(self, node: Node, reader: Node) -> bool:
        """Whether `reader` reads a tile as a left operand that is turned, with whole rows in each warp, and no other way."""
        if node.role not in ("reduce", "map") or reader.way != "contract" or reader.operands is None:
            return False
        if reader.layout is None or reader in self.precise:
            return False
        left, right = reader.operands
        rows = layout(node.extents[1], node.extents[0], self.warps, True)
        return (
            self.nodes[left.source] is node and left.turned and self.nodes[right.source] is not node
            and reader.layout.across == 1 and rows.across == 1 and reader.layout.like_rows(rows)
        )  # fmt: skip

    def _precise(self) -> set[Node]:
        """The contractions that a result in a wide dtype comes from, if an operand would lose something in the narrow one."""
        found: set[Node] = set()
        stack = [emit for emit in self.emits if self.narrow is not None and emit.tensor in self.kernel.precise]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            sources = [*[r.source for r in node.reads], *[o.source for o in node.operands or ()]]
            stack += [self.nodes[t] for t in sources]
            if any(self.nodes[o.source].role != "load" or not self.exact(o.source) for o in node.operands or ()):
                found.add(node)
        return found

    def _extent(self, var: Any, node: Node) -> int:
        for k, own in enumerate(node.own):
            if own.same_as(var):
                return node.extents[k]
        return int(const_int(stages.reduce_axes(node.tensor)[[o.same_as(var) for o in node.over].index(True)].dom.extent))

    # ---------------------------------------------------------------- where each lives

    def _home(self) -> None:
        for held in self.held.values():
            held.registers = held.node.way != "flat"
        for node in self.steps:
            for k, side in enumerate(node.operands or ()):
                if not (k == 0 and self.in_registers(node, side)):
                    self._share(side.source, node.sides, operand=node not in self.precise)
            if node.way == "contract":
                continue
            for read in node.reads:
                if self.nodes[read.source].role == "fused":
                    continue
                held = self.held[read.source]
                held.earlier |= read.earlier
                if not self.reads_registers(node, read):
                    self._share(read.source, node.sides if read.side is None else (read.side,), operand=False)
        for held in self.held.values():
            held.settle(alike=self.narrow == TF32)
        self.held = {tensor: held for tensor, held in self.held.items() if held.node.role != "fused"}

    def _share(self, tensor: te.Tensor, sides: Iterable[bool], operand: bool) -> None:
        held = self.held[tensor]
        load = held.node.role == "load"
        narrow = self.narrow is not None and (operand or (load and self.exact(tensor)))
        if self.narrow == TF32 and self.kernel.walked is not None:
            # What is copied past registers is rounded by those who read it, and a state in shared memory keeps all of its bits.
            narrow = narrow and not load and (held.node.role != "state" or held.registers)
        kind = "narrow" if narrow else "wide"
        held.narrow, held.wide = held.narrow or narrow, held.wide or not narrow
        held.sides.setdefault(kind, set()).update(sides)

    def exact(self, tensor: te.Tensor) -> bool:
        """Whether a loaded tile is a copy of narrow memory, so that nothing is lost in the narrow dtype."""
        if tensor in self.memory:
            return str(tensor.dtype) == self.narrow
        expr = stages.body(tensor)
        while call_name(expr) == "if_then_else" and _is_exact(expr.args[2]):
            expr = expr.args[1]
        return isinstance(expr, prim.Cast) and is_load(expr.value) and str(load_tensor(expr.value).dtype) == self.narrow

    def in_registers(self, node: Node, side: Operand) -> bool:
        """Whether the left operand of a contraction can be taken from registers as it is."""
        source = self.nodes[side.source]
        if self.narrow is None or node in self.precise or source.way not in ("fragment", "contract") or source.role == "state":
            return False
        mine, its = node.layout, source.layout
        assert mine is not None and its is not None
        return mine.tensor and side.turned == its.turned and mine.across == 1 and its.across == 1 and mine.like_rows(its)

    def reads_registers(self, node: Node, read: Read) -> bool:
        """Whether a read finds the element in its own thread's registers."""
        source = self.nodes[read.source]
        if node.layout is None or source.layout is None or source.way == "flat":
            return False
        point = (*node.own, *node.over) if node.role == "reduce" else tuple(node.own)
        if source.way in ("fragment", "contract"):
            return node.way in ("fragment", "rowstat") and node.layout == source.layout and _is(read.at, point)
        return node.layout.same_rows(source.layout) and _is(read.at, point[:1])


def _is(at: tuple[Any, ...], point: tuple[Any, ...]) -> bool:
    return len(at) == len(point) and all(hasattr(a, "same_as") and a.same_as(b) for a, b in zip(at, point, strict=True))


def _is_exact(expr: Any) -> bool:
    """Whether a constant is the same in every float dtype."""
    value = getattr(expr, "value", None)
    if call_name(expr) in ("inf", "infinity"):
        return True
    return isinstance(value, (int, float)) and (float(value) == 0.0 or math.isinf(value))
