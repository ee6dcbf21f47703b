"""The nests of one step of a tile kernel: tiles and row vectors in registers, everything else in shared memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import call_name, conjunction, const_int, find, is_load, load_indices, load_tensor, substitute
from tilegen.plan import stages
from tilegen.plan.evaluate import combine, identity
from tilegen.plan.gpu import contract, masks, runs, tf32
from tilegen.plan.gpu.func import WARP
from tilegen.plan.gpu.layout import PAD, TF32, Layout, padded
from tilegen.plan.gpu.loading import Loading
from tilegen.plan.gpu.program import Held, Node
from tilegen.plan.gpu.shared import Shared
from tilegen.plan.gpu.sides import Sides
from tilegen.plan.gpu.values import Values

KEPT = 96
"""Registers of a thread for operands that several contractions take, at most."""
SPARE = 32
"""Registers of a thread, of 255, for addresses and what is on its way."""

Known = Callable[[Any, Any], masks.Domain | None]
"""What is known of the masks at (row, column)."""


class Nests(Sides, Loading):
    """A block that computes its stages."""

    def _share(self, held: Held) -> None:
        """Copies of what is in registers that others read from shared memory."""
        node, tensor = held.node, held.node.tensor
        kind_of = {s: kind for kind in ("wide", "narrow") if (s := self._home(tensor, kind)) is not None}
        homes = list(kind_of)
        if not held.registers or not homes or node.layout is None:
            return
        self.arena.use([], homes)
        layout, source = node.layout, self.registers[tensor]
        for side in (True, False):
            # A copy that only one side reads is made there.
            only = [s for s in homes if self.choice is not None and held.sides.get(kind_of[s]) == {side}]
            homes = [s for s in homes if s not in only]
            if only and self.side in (None, side):
                with self._given(side) if self.side is None else nullcontext():
                    self._copy(node, layout, source, only)
        if homes:
            self._copy(node, layout, source, homes)

    def _copy(self, node: Node, layout: Layout, source: Any, homes: Sequence[Shared]) -> None:
        if node.way in ("rows", "rowstat"):
            with (
                self._over(layout, rows_only=True) as (at, row, _),
                self._if(conjunction([row < node.extents[0], self._leads(layout)])),
            ):
                for shared in homes:
                    T.buffer_store(shared.buffer, tf32.kept(source[(layout.row_register(at),)], shared), [shared.flat([row])])
            return
        zero = tirx.const(0, "int32")
        a, b, c, d = layout.dims
        for shared in homes:
            self._fill_outside(node, shared)
            with ExitStack() as stack:
                m, n, r = (zero if count == 1 else stack.enter_context(T.unroll(0, count)) for count in (a, b, c))
                row, first = layout.place(self.thread, (m, n, r, zero))
                limits = zip((row, first), layout.extents, shared.shape, strict=True)
                stack.enter_context(self._if(conjunction([i < size for i, held_, size in limits if held_ > size])))
                held = lambda e: source[(layout.register((m, n, r, e)),)]  # noqa: E731
                if shared.tf32:
                    both = T.alloc_buffer([d], shared.dtype, scope="local")
                    with T.unroll(0, d) as e:
                        T.buffer_store(both, tf32.nearest(held(e)), [e])
                    held = lambda e: both[(e,)]  # noqa: E731
                e = zero if d == 1 else stack.enter_context(T.vectorized(0, d))
                T.buffer_store(shared.buffer, tf32.rounded(held(e), shared.dtype), [shared.flat([row, first + e])])

    def _fill_outside(self, node: Node, shared: Shared) -> None:
        """The columns of a banded tile that no warp holds, in shared memory."""
        layout = node.layout
        assert layout is not None
        if layout.slant is None:
            return
        a, held, c, d = layout.dims
        columns = padded(layout.columns)
        zero, value = tirx.const(0, "int32"), tirx.const(self.program.outside[node.tensor], shared.dtype)
        with ExitStack() as stack:
            m = zero if a == 1 else stack.enter_context(T.unroll(0, a))
            n, r = (stack.enter_context(T.unroll(0, count)) for count in (columns // 8 - held, c))
            row, first = layout.place(self.thread, (m, zero, r, zero))
            # Those after the warp's last column, and then those before its first.
            column = tirx.truncmod(first + (held + n) * 8, columns)
            if layout.extents[0] > shared.shape[0]:
                stack.enter_context(self._if(row < shared.shape[0]))
            v = stack.enter_context(T.vectorized(0, d))
            T.buffer_store(shared.buffer, value, [shared.flat([row, column + v])])

    def _leads(self, layout: Layout) -> Any:
        """Whether this thread speaks for its rows: the first of the lanes that hold them."""
        width = 4 if layout.tensor else 16
        first = tirx.truncmod(self.thread, width) == 0
        if layout.tensor and layout.across > 1:
            return tirx.all(first, layout.first_column(self.thread) == 0)
        return first

    def _contract(self, node: Node, fresh: bool, into: Any = None) -> None:
        layout, operands = node.layout, node.operands
        assert layout is not None and operands is not None
        target = self.registers[node.tensor] if into is None else into
        sides: list[Any] = self._sides(node)
        self.arena.use([s.shared for s in sides if isinstance(s, contract.InShared)], [])
        steps = self._contracted(node)
        if fresh:
            with T.unroll(0, layout.size) as r:
                T.buffer_store(target, tirx.const(0, str(node.tensor.dtype)), [r])
        if self._on_tensor_cores(node):
            made = (layout, sides[0], sides[1], target, steps)
            if self.narrow == TF32:
                tf32.on_tensor_cores(*made, self.thread, self.fragments)
            else:
                contract.on_tensor_cores(*made, self.narrow, self.thread, self.fragments)
        else:
            contract.on_threads(layout, sides[0], sides[1], target, steps, str(node.tensor.dtype), self.thread)

    def _sides(self, node: Node) -> list[contract.InShared | contract.InRegisters]:
        """Where a contraction finds its operands, and in which order it takes what is contracted."""
        left, right = (self._side(node, k) for k in range(2))
        assert isinstance(right, contract.InShared) and node.layout is not None
        if self.narrow != TF32 or not self._on_tensor_cores(node) or not tf32.is_paired(node.layout, left, right):
            return [left, right]
        return [dataclasses.replace(s, paired=True) if isinstance(s, contract.InShared) else s for s in (left, right)]

    def _side(self, node: Node, k: int) -> contract.InShared | contract.InRegisters:
        """Where a contraction finds its left (0) or right operand."""
        side = (node.operands or ())[k]
        if k == 0 and self.program.in_registers(node, side):
            return contract.InRegisters(self.registers[side.source], self.program.nodes[side.source].layout)
        kinds = ("narrow", "wide") if self._on_tensor_cores(node) else ("wide", "narrow")
        home = self._home(side.source, kinds[0]) or self._home(side.source, kinds[1])
        assert home is not None
        return contract.InShared(home, side.turned)

    def _on_tensor_cores(self, node: Node) -> bool:
        return self.narrow is not None and node not in self.program.precise

    def _plan_fragments(self) -> contract.Fragments:
        """Which operands stay in registers because several contractions of a step take them.

        Only in walks: they rarely have a block for every multiprocessor, so registers are plenty and latency is what counts.
        """
        wanted: dict[Any, int] = {}
        sizes: dict[Any, int] = {}
        nodes = self.program.steps if self.kernel.walked is not None and not self.program.outside else []
        for node in [n for n in nodes if n.operands is not None and self._on_tensor_cores(n)]:
            assert node.layout is not None
            for k, side in enumerate(self._sides(node)):
                key = contract.fragment_key(node.layout, side, k == 0) if isinstance(side, contract.InShared) else None
                if key is not None:
                    wanted[key] = wanted.get(key, 0) + 1
                    words = 2 if self.narrow == TF32 else 1
                    sizes[key] = node.layout.dims[k] * (4, 2)[k] * (padded(self._contracted(node)) // PAD) * words
        taken = sum(n.layout.size for n in self.program.steps if n.tensor in self.registers and n.tensor not in self.program.onto)
        free = min(KEPT, 255 - SPARE - taken)
        for key in wanted:
            if wanted[key] > 1 and sizes[key] <= free:
                free -= sizes[key]
            else:
                wanted[key] = 1
        return contract.Fragments(wanted)

    def _contracted(self, node: Node) -> int:
        """The extent of the contracted axis."""
        side = (node.operands or ())[1]
        extents = self.program.nodes[side.source].extents
        return extents[0] if side.turned else extents[1]

    def _fragment_map(self, node: Node) -> None:
        self.arena.use(self._used(node), [])
        self._each(node, self.registers[node.tensor], lambda values, _: values.compute(node.tensor))

    def _each(self, node: Node, target: Any, value: Callable[[Values, Any], Any], clear: bool = True) -> None:
        """Every element of a tile in registers; padding becomes 0, or stays so."""
        layout = node.layout
        assert layout is not None

        def segment(blocks: tuple[int, int] | None, known: Known) -> None:
            with self._over(layout, blocks=blocks) as (at, row, column):
                register = layout.register(at)
                guard = self._guard(layout, layout.point(*node.extents), row, column)
                if guard is not None and clear:
                    T.buffer_store(target, tirx.const(0, str(target.dtype)), [register])
                with self._if(guard):
                    values = self._values(node, layout.point(row, column), at)
                    values.domain = known(row, column)
                    T.buffer_store(target, value(values, at), [register])

        self._segments(node, segment)

    def _segments(self, node: Node, emit: Callable[[tuple[int, int] | None, Known], None]) -> None:
        """Emit a nest over a tile segment by segment (see `tilegen.plan.gpu.masks`): ``emit(blocks, what is known there)``."""
        layout = node.layout
        assert layout is not None
        row, column = tirx.Var("row", "int32"), tirx.Var("column", "int32")
        asked = self._choices(node, *layout.point(row, column)) if layout.tensor and node.cut is None else []
        if not asked:
            emit(None, lambda *_: None)
            return
        for first, end in masks.segments(layout, masks.comparisons(asked), row, column):
            domain = masks.Domain(layout, row, column, first, end)
            assumed, worst = domain.assumptions(asked)

            def known(r: Any, c: Any, assumed: Sequence[Any] = (), blocks: tuple[int, int] = (first, end)) -> masks.Domain:
                return masks.Domain(layout, r, c, *blocks, [substitute(a, {row: r, column: c}) for a in assumed])

            if not assumed:
                emit((first, end), known)
                continue
            with T.If(conjunction(worst)):
                with T.Then():
                    emit((first, end), partial(known, assumed=assumed))
                with T.Else():
                    emit((first, end), known)

    def _choices(self, node: Node, row: Any, column: Any) -> list[Any]:
        """The conditions of the choices in a stage, and in all that is computed where it is read, at (row, column) of this tile."""
        tensor = node.tensor
        if stages.kind(tensor) == "scan":
            return []
        axes = [*stages.axes(tensor), *[a.var for a in (stages.reduce_axes(tensor) if node.way == "rowstat" else [])]]
        if len(axes) != self.rank + 2:
            return []
        found: list[Any] = []
        seen = {tensor}
        stack = [substitute(stages.body(tensor), dict(zip(axes, [*self.outer, row, column], strict=True)))]
        while stack:
            expr = stack.pop()
            found += [call.args[0] for call in find(expr, lambda e: call_name(e) == "if_then_else")]
            for load in find(expr, is_load):
                read, at = load_tensor(load), load_indices(load)
                if stages.kind(read) == "map" and not (read in self.memory or read in self.program.held or read in seen):
                    seen.add(read)
                    stack.append(substitute(stages.body(read), dict(zip(stages.axes(read), at, strict=True))))
        return found

    def _row_map(self, node: Node) -> None:
        layout = node.layout
        assert layout is not None
        self.arena.use(self._used(node), [])
        target = self.registers[node.tensor]
        with self._over(layout, rows_only=True) as (at, row, _):
            guard = self._guard(layout, node.extents, row)
            if guard is not None:
                T.buffer_store(target, tirx.const(0, str(target.dtype)), [layout.row_register(at)])
            with self._if(guard):
                values = self._values(node, [row], at)
                T.buffer_store(target, values.compute(node.tensor), [layout.row_register(at)])

    def _row_statistic(self, node: Node) -> None:
        """A sum, maximum or minimum over the columns of a tile in registers; all lanes of a row end with it."""
        layout, kind, dtype = node.layout, stages.reduction(node.tensor), str(node.tensor.dtype)
        assert layout is not None
        self.arena.use(self._used(node), [])
        target = self.registers[node.tensor]
        start = identity(kind, dtype)
        if layout.slant is not None:
            # Every row has columns outside the band, where the terms are constant.
            start = combine(kind, start, tirx.const(self.program.outside[node.tensor], dtype))
        with T.unroll(0, layout.row_size) as r:
            T.buffer_store(target, start, [r])
        extents = [node.extents[0], layout.columns]

        def segment(blocks: tuple[int, int] | None, known: Known) -> None:
            with self._over(layout, blocks=blocks) as (at, row, column):
                register = layout.row_register(at)
                with self._if(self._guard(layout, extents, row, column)):
                    values = self._values(node, [row, column], at)
                    values.domain = known(row, column)
                    *values.point, column = values.point
                    T.buffer_store(target, values.reduce_value(node.tensor, [column], target[(register,)]), [register])

        self._segments(node, segment)
        for mask in layout.row_lanes:
            with T.unroll(0, layout.row_size) as r:
                other = T.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, "uint32"), target[(r,)], mask, WARP, WARP)
                T.buffer_store(target, combine(kind, target[(r,)], other), [r])

    # ---------------------------------------------------------------- shared memory alone

    def _store(self, node: Node, value: Any, inner: Sequence[Any]) -> None:
        for kind in ("wide", "narrow"):
            shared = self._home(node.tensor, kind)
            if shared is not None:
                T.buffer_store(shared.buffer, tf32.kept(value, shared), [shared.flat(list(inner))])

    def _clear(self, node: Node) -> None:
        """Zeros in the padding of an operand's tile."""
        narrow = self._home(node.tensor, "narrow") or self._home(node.tensor, "wide")
        if narrow is None or len(node.extents) != 2 or tuple(node.extents) == narrow.shape:
            return
        for shared in self._writes(node):
            with (
                self._flat(shared.shape) as point,
                self._if(tirx.any(*[i >= n for i, n in zip(point, node.extents, strict=True)])),
            ):
                T.buffer_store(shared.buffer, tirx.const(0, shared.dtype), [shared.flat(point)])

    def _flat_map(self, node: Node) -> None:
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        with self._flat(node.extents) as inner:
            self._store(node, self._values(node, inner).compute(node.tensor), inner)

    def _flat_reduce(self, node: Node) -> None:
        """A thread an element of the result, the reduced axes in order; a few elements take several lanes each."""
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        if runs.reduced(self, node):
            return
        kind, dtype = stages.reduction(node.tensor), str(node.tensor.dtype)
        over = [int(const_int(a.dom.extent)) for a in stages.reduce_axes(node.tensor)]
        total = T.alloc_buffer([1], dtype, scope="local")
        lanes = self._lanes(node.extents, over)
        with self._flat(node.extents, lanes) as inner:
            T.buffer_store(total, identity(kind, dtype), [0])
            with ExitStack() as stack:
                *lead, n = over
                steps = [stack.enter_context(T.serial(0, m)) for m in lead]
                last = stack.enter_context(T.serial(0, n // lanes))
                steps.append(last if lanes == 1 else self._let("step", last * lanes + tirx.truncmod(self.thread, lanes)))
                for var, m in zip(steps, over, strict=True):
                    self.analyzer.bind(var, ir.Range(0, m))
                values = self._values(node, inner)
                T.buffer_store(total, values.reduce_value(node.tensor, steps, total[(0,)]), [0])
            mask = lanes // 2
            while mask:
                other = T.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, "uint32"), total[(0,)], mask, WARP, WARP)
                T.buffer_store(total, combine(kind, total[(0,)], other), [0])
                mask //= 2
            leads = None
            if lanes > 1:
                leads = tirx.all(self.thread < math.prod(node.extents) * lanes, tirx.truncmod(self.thread, lanes) == 0)
            with self._if(leads):
                self._store(node, total[(0,)], inner)

    def _lanes(self, extents: Sequence[int], over: Sequence[int]) -> int:
        """Lanes of a warp that share one element of a result, so that no thread idles while others run long loops."""
        lanes = 1
        while lanes < WARP and math.prod(extents) * lanes * 2 <= self.threads and over[-1] % (lanes * 2) == 0:
            lanes *= 2
        return lanes

    def _scan(self, node: Node) -> None:
        """A scan inside the tile: one thread a line."""
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        scan = node.tensor
        spec, sources = scan_spec(scan.op), scan_inputs(scan.op)
        axis = spec.axis - self.rank
        length = node.extents[axis]
        rest = [n for k, n in enumerate(node.extents) if k != axis]
        with self._flat(rest or [1]) as others:
            before = T.alloc_buffer([1], str(scan.dtype), scope="local")
            with T.serial(0, length) as step:
                self.analyzer.bind(step, ir.Range(0, length))
                at = length - 1 - step if spec.reverse else step
                inner = list(others if rest else [])
                inner.insert(axis, at)
                last = list(inner)
                last[axis] = at + 1 if spec.reverse else at - 1
                values = self._values(node, inner)
                here, there = list(values.point), [*self.outer, *self._whole(node, last)]
                value = values.scan_value(scan, sources, here, there, step == 0, _Before(before))
                T.buffer_store(before, value, [0])
                self._store(node, before[(0,)], inner)


class _Before:
    """The element before in a scan, whatever its index: it is in a register."""

    def __init__(self, register: Any):
        self.register = register

    def __getitem__(self, _: Any) -> Any:
        return self.register[(0,)]
