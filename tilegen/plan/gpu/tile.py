"""Tile kernels on a GPU: one block a task, what it holds in registers and shared memory, contractions on tensor cores.

::

    a block for every outer point that is not walked:
        states before the first tile, in registers
        for the walked axis, if there is one:
            tiles of the inputs to shared memory (those of the next step are fetched meanwhile)
            one nest for every held stage, in order, barriers where shared memory changes hands
            results from registers to memory, where they exist
            the states move on

Which stages are held, and how, is `tilegen.plan.gpu.program`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from tvm import ir, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import conjunction, const_int, substitute, variables
from tilegen.plan.evaluate import identity
from tilegen.plan.gpu import copying, pipeline, runs, writing
from tilegen.plan.gpu.func import launch
from tilegen.plan.gpu.nests import Nests
from tilegen.plan.gpu.program import Node
from tilegen.plan.gpu.room import open_room
from tilegen.plan.gpu.values import Values, rounded
from tilegen.plan.idle import busy
from tilegen.plan.keep import keep


class TileEmitter(Nests):
    """Writes one kernel."""

    def emit(self) -> None:
        """The whole kernel."""
        kernel = self.kernel
        axes = pipeline.ordered(kernel, [k for k in self.parallel if const_int(kernel.space[k]) != 1])
        blocks: Any = None
        for k in axes:
            blocks = kernel.space[k] if blocks is None else blocks * kernel.space[k]
        parts = self.program.parts
        grid = [blocks if blocks is not None else 1, *([parts] if parts > 1 else [])]
        with launch(grid, self.threads) as ((block, *part), thread), self._resident():
            self.thread = thread
            self.part = part[0] if part else None
            self.analyzer.bind(thread, ir.Range(0, self.threads))
            self.arena.open(self.near)
            if kernel.room is not None:
                open_room(self.memory[kernel.room], self.far, block)
            for k in self.parallel:
                self.outer[k] = tirx.const(0, "int32")
            rest = block if blocks is None else pipeline.mixed(self, axes, block, blocks)
            for k in reversed(axes):
                extent = kernel.space[k]
                here = rest if k == axes[0] else tirx.truncmod(rest, extent)
                # Kept: the simplifier would repeat the division by a symbolic size wherever the index is used.
                self.outer[k] = self._let(f"o{k}", here if here is block else keep(here), extent)
                rest = rest if k == axes[0] else self._let(f"rest{k}", keep(tirx.truncdiv(rest, extent)))
            self._allocate()
            self.fragments = self._plan_fragments()
            self.arena.on_write = self.fragments.forget
            if kernel.walked is None:
                with self._if(self._occupied()):
                    self._fetch(None)
                    self._body()
                return
            for node in self._states():
                self._start(node)
            (pipeline.walk if pipeline.fits(self) else TileEmitter._walk)(self, kernel.walked)

    def _occupied(self) -> Any:
        """Whether this tile has elements; None where every tile has work to do.  Without any a block is done before it loads."""
        values, counts = self._values_at([]), self.kernel.elements(list(self.outer))
        return tirx.any(*[self._let("elements", keep(values.resolved(count))) > 0 for count in counts]) if counts else None

    def _walk(self, walked: int) -> None:
        kernel = self.kernel
        extent = kernel.extent
        index = lambda step: extent - 1 - step if kernel.reverse else step  # noqa: E731
        self.lead = lead = pipeline.lead(self, walked)
        if self.prefetch:
            self.outer[walked] = self._let("first", index(tirx.const(0, "int32")), extent)
            self._fetch(self._busy())
        for early in range(1, lead):
            pipeline.copy_ahead(self, tirx.const(early, "int32"), index)
        with T.serial(0, extent) as step:
            self.outer[walked] = here = self._let("step", index(step), extent)
            self.arena.turn(step)

            def ahead() -> None:
                self.outer[walked] = self._let("next", index(step + 1), extent)
                with self.arena.ahead(step + 1):
                    self._fetch(conjunction(c for c in (step + 1 < extent, self._busy()) if c is not None), copies=lead == 1)
                if lead > 1:
                    pipeline.copy_ahead(self, step + lead, index)
                self.outer[walked] = here

            busy = self._busy()
            with self._if(busy):
                if not self.prefetch:
                    self._fetch(None)
                self._body(ahead if self.prefetch else None, emits=busy is None)
                if busy is None or not any(v.same_as(step) for v in variables(busy)):
                    self.arena.close()
                else:  # between two steps with something to do may be others, without barriers
                    self.arena.settle()
            for node in self.program.emits if busy is not None else []:
                self._either(node)

    @contextmanager
    def _resident(self) -> Iterator[None]:
        """A walk may have a multiprocessor alone, and all its registers, unless it is said how many blocks share one."""
        walks = self.kernel.walked is not None
        with T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", self.resident) if walks else nullcontext():
            yield

    def _busy(self) -> Any:
        """Whether this step of the walk adds anything to the states; None where every step may."""
        shared = any((node.tensor, kind) in self.homes for node in self._states() for kind in ("wide", "narrow", "earlier"))
        found = None if shared else busy(self.kernel, list(self.outer))
        return None if found is None else self._values_at([], inline=True).resolved(found)

    def _body(self, ahead: Callable[[], None] | None = None, emits: bool = True) -> None:
        self.fragments.held, self.choice = {}, None
        for node in self._states():
            spec = scan_spec(node.tensor.op)
            if spec.exclusive and spec.reset:
                self._enter(node)
            if spec.exclusive:
                self._share(self.program.held[node.tensor])
        loads = [n for n in self.program.steps if n.role == "load"]
        for node in loads:
            self._load(node)
        if any(self._is_copied(node) for node in loads):
            # What is copied next goes where the step before read: all of them are done with it after this barrier.
            copying.wait(self.lead - 2 if self.lead > 1 else None)
            self.arena.meet()
        if ahead is not None:
            ahead()
        branch = self.program.branch
        if branch is not None and branch.flag not in self.program.held:
            self._choose()
        for node in self.program.steps:
            if node.role != "load" and (emits or node.role != "emit"):
                self._either(node)
            if branch is not None and node.tensor in {branch.flag} and node.role != "emit":
                self._choose()

    def _nest(self, node: Node) -> None:
        if node.role == "emit":
            self._write(node)
        elif node.role == "state":
            self._advance(node)
        elif node.role == "scan":
            self._scan(node)
        elif node.way == "contract":
            self._contract(node, fresh=node.tensor not in self.program.onto)
        elif node.way == "rowstat":
            self._row_statistic(node)
        elif node.way == "rows":
            self._row_map(node)
        elif node.way == "fragment":
            self._fragment_map(node)
        elif node.role == "reduce":
            self._flat_reduce(node)
        else:
            self._flat_map(node)
        if (
            node.tensor in self.program.held
            and node.role not in ("emit", "state")
            and node.way in ("contract", "fragment", "rows", "rowstat")
        ):
            self._share(self.program.held[node.tensor])

    # ---------------------------------------------------------------- states

    def _start(self, node: Node) -> None:
        scan = node.tensor
        initial = scan_inputs(scan.op).get("initial")
        nothing = identity(scan_spec(scan.op).kind, str(scan.dtype))

        def value(inner: Sequence[Any]) -> Any:
            if initial is None:
                return nothing
            outer = [o for k, o in enumerate(self.outer) if k != self.kernel.walked]
            values = self._values(node, inner)
            values.point = values.full = [*outer, *values.point[self.rank :]]
            return values.value_at(initial, list(values.point))

        if node.way == "fragment":
            layout = node.layout
            assert layout is not None
            with self._over(layout) as (at, row, column):
                guard = self._guard(layout, node.extents, row, column)
                target = self.registers[scan]
                if guard is not None:
                    T.buffer_store(target, tirx.const(0, str(target.dtype)), [layout.register(at)])
                with self._if(guard):
                    T.buffer_store(target, value([row, column]), [layout.register(at)])
            return
        self.arena.use([], self._writes(node))
        self._clear(node)
        with self._flat(node.extents or [1]) as inner:
            self._store(node, value(inner if node.extents else []), inner)

    def _enter(self, node: Node) -> None:
        """The state with which a scan comes to this step, which readers of an exclusive one get: another where a sequence starts."""
        scan = node.tensor
        self.arena.use(self._used(node), [] if node.way == "fragment" else self._writes(node))
        if node.way == "fragment":
            layout, target = node.layout, self.registers[scan]
            assert layout is not None
            restarted = lambda values, at: values.restarted(scan, list(values.point), target[(layout.register(at),)])  # noqa: E731
            self._each(node, target, restarted, clear=False)
            return
        shared = self.homes.get((scan, "wide")) or self.homes[scan, "narrow"]
        with self._flat(node.extents or [1]) as points:
            values = self._values(node, points if node.extents else [])
            self._store(node, values.restarted(scan, list(values.point), self._load_shared(shared, points)), points)

    def _advance(self, node: Node) -> None:
        """The state after this step."""
        scan, sources = node.tensor, scan_inputs(node.tensor.op)
        entered = scan_spec(scan.op).exclusive  # see `_enter`
        held = self.program.held[scan]
        fused = node.operands is not None
        if held.earlier:
            self._keep_earlier(node)
        self.arena.use(self._used(node), [] if node.way == "fragment" else self._writes(node))
        if node.way == "fragment":
            layout, target = node.layout, self.registers[scan]
            assert layout is not None
            if not fused or scan_spec(scan.op).decay:
                zero = sources["x"] if fused else None

                def moved(values: Values, at: Any) -> Any:
                    if zero is not None:
                        values.held = _without(values.held, zero)
                    return values.walk_value(scan, sources, list(values.point), target[(layout.register(at),)], entered)

                self._each(node, target, moved, clear=False)
            if fused:
                self._contract(node, fresh=False, into=target)
            if not scan_spec(scan.op).exclusive:
                self._share(held)
            return
        shared = self.homes.get((scan, "wide")) or self.homes[scan, "narrow"]
        with self._flat(node.extents or [1]) as points:
            inner = points if node.extents else []
            values = self._values(node, inner)
            before = self._load_shared(shared, inner or points)
            self._store(node, values.walk_value(scan, sources, list(values.point), before, entered), inner or points)

    def _keep_earlier(self, node: Node) -> None:
        """A copy of the state before it moves on, for stages that read the step before."""
        earlier = self.homes[node.tensor, "earlier"]
        self.arena.use(self._writes(node), [earlier])
        if node.way == "fragment":
            layout = node.layout
            assert layout is not None
            with self._over(layout) as (at, row, column):
                inside = conjunction([row < node.extents[0], column < node.extents[1]])
                with self._if(inside):
                    T.buffer_store(
                        earlier.buffer, self.registers[node.tensor][(layout.register(at),)], [earlier.flat([row, column])]
                    )
            return
        now = self.homes[node.tensor, "wide"]
        with self._flat(node.extents or [1]) as inner:
            T.buffer_store(earlier.buffer, self._load_shared(now, inner), [earlier.flat(inner)])

    # ---------------------------------------------------------------- results

    def _write(self, node: Node) -> None:
        tensor = node.tensor
        frame = self.kernel.frames[tensor]
        self.arena.use(self._used(node), [])
        self.fixed = dict(frame.fixed)
        self.ends = self._ends(node)
        if node.way == "fragment":
            (writing.write if writing.fits(self, node) else TileEmitter._write_tile)(self, node)
        elif node.way == "rows":
            layout = node.layout
            assert layout is not None
            with self._over(layout, rows_only=True) as (at, row, _):
                padding = [g for g in (self._guard(layout, node.extents, row), self._leads(layout)) if g is not None]
                self._store_result(node, self._values(node, [row], at), padding)
        elif not runs.written(self, node, lambda values: self._result(node, values)):
            with self._flat(node.extents or [1]) as points:
                self._store_result(node, self._values(node, points if node.extents else []), [])
        self.fixed = {}

    def _ends(self, node: Node) -> dict[int, tuple[Any, Any]]:
        """For axes whose elements tables place in tiles: the first element of this tile, and how many it has."""
        frame, values, at = self.kernel.frames[node.tensor], self._values_at([]), list(self.outer)
        both = {k: (frame.firsts(at)[k], frame.counts(at)[k]) for k in frame.ragged}
        return {
            k: (self._let("first", keep(values.resolved(first))), self._let("count", keep(values.resolved(count))))
            for k, (first, count) in both.items()
        }

    def _result(self, node: Node, values: Values) -> tuple[list[Any], list[Any], Callable[[], Any]]:
        """(indices, conditions under which they are this block's to write, the value) of an element of a result."""
        tensor = node.tensor
        frame, target = self.kernel.frames[tensor], self.targets[tensor]
        inner = values.point[self.rank :]
        first = {k: begin for k, (begin, _) in self.ends.items()}
        indices = frame.indices(list(self.outer), inner, first)
        if first:
            places = {k: indices[k] for k in first}
            values.located = lambda placing, index: frame.located(placing, index, list(self.outer), inner, places)
        guards = [indices[k] - begin < count for k, (begin, count) in self.ends.items()]
        guards += [g for g in frame.guards(tensor, list(self.outer), indices) if not self.analyzer.can_prove(g)]

        def value() -> Any:
            held = tensor in self.program.held
            found = values.element(tensor, indices) if held else values.math(values._stage(tensor, list(indices)))
            return rounded(found, str(target.dtype))

        return indices, guards, value

    def _store_result(self, node: Node, values: Values, padding: list[Any]) -> None:
        indices, guards, value = self._result(node, values)
        with self._if(conjunction([*padding, *guards])):
            T.buffer_store(self.targets[node.tensor], value(), indices)

    def _write_tile(self, node: Node) -> None:
        """A tile from registers to memory: conditions on a row once a row, neighbours in one access."""
        layout, target = node.layout, self.targets[node.tensor]
        assert layout is not None
        zero = tirx.const(0, "int32")
        a, b, c, d = layout.dims
        width = const_int(target.shape[-1])
        split = self.kernel.frames[node.tensor].axes[-1]
        pair = (
            d == 2 and width is not None and width % 2 == 0 and (split is None or (split[1] % 2 == 0 and width % split[1] == 0))
        )
        with ExitStack() as stack:
            m, r = (zero if count == 1 else stack.enter_context(T.unroll(0, count)) for count in (a, c))
            row = self._let("row", layout.place(self.thread, (m, zero, r, zero))[0], layout.rows)
            # The first of two neighbours stands for both in the indices.
            probe = tirx.Var("column", "int32")
            line = self._whole(node, [row, zero])[0] if node.cut == 0 else row
            indices, guards, _ = self._result(node, self._values_at([line, probe], layout, (m, zero, r, zero)))
            shift = self.part * node.extents[1] if node.cut == 1 else zero
            above = [g for g in guards if not any(v.same_as(probe) for v in variables(g))]
            padding = self._guard(layout, node.extents, row)
            stack.enter_context(self._if(conjunction([*([padding] if padding is not None else []), *above])))
            n = zero if b == 1 else stack.enter_context(T.unroll(0, b))
            first = layout.place(self.thread, (m, n, r, zero))[1]
            inside = first < node.extents[1] if layout.extents[1] != node.extents[1] else None
            temporary = T.alloc_buffer([d], str(target.dtype), scope="local") if pair else None
            if pair and node.extents[1] % 2:
                raise PlanError(f"kernel '{self.kernel.name}': an odd part of '{node.name}'")
            if pair:
                stack.enter_context(self._if(inside))
            with ExitStack() as inner:
                e = zero if d == 1 else inner.enter_context(T.unroll(0, d))
                at = (m, n, r, e)
                column = self._let("column", layout.place(self.thread, at)[1], layout.columns)
                values = self._values(node, [row, column], at)
                here, guards, value = self._result(node, values)
                below = [g for g in guards if any(v.same_as(values.point[-1]) for v in variables(g))]
                if pair:
                    T.buffer_store(temporary, value(), [e])
                else:
                    rest = [column < node.extents[1]] if inside is not None else []
                    with self._if(conjunction([*rest, *below])):
                        T.buffer_store(target, value(), here)
            if pair:
                with T.vectorized(0, d) as v:
                    T.buffer_store(target, temporary[(v,)], [substitute(i, {probe: first + shift + v}) for i in indices])


def _without(find: Any, tensor: te.Tensor) -> Any:
    """`find` in which `tensor` is 0: what is left of a sum when its other term is added later."""

    def found(wanted: te.Tensor, at: list[Any]) -> Any:
        return tirx.const(0, str(tensor.dtype)) if wanted in {tensor} else find(wanted, at)

    return found
