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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import ir, sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import conjunction, const_int
from tilegen.plan import stages
from tilegen.plan.evaluate import MathRule, combine, identity
from tilegen.plan.gpu import contract, vector
from tilegen.plan.gpu.func import WARP, Buffers, Decisions, launch
from tilegen.plan.gpu.layout import Layout, padded
from tilegen.plan.gpu.program import NARROW, Held, Node, Program
from tilegen.plan.gpu.shared import Arena, Shared, place
from tilegen.plan.gpu.values import Values, rounded
from tilegen.plan.keep import keep
from tilegen.plan.kernel import Kernel
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import Gpu, dtype_bytes

RUN = 8
"""Elements of a row that one thread moves at a time."""

Registers = tuple[Any, Any, Any, Any]


def lower_tile(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Emit a tile kernel.

    Decisions: `warps` of a block, `parts` in which blocks share out an axis of the results, `prefetch` (0 or 1) in a walk.
    """
    assert isinstance(kernel, TileKernel)
    TileEmitter(kernel, buffers, decisions, gpu, math).emit()


def narrow_dtype(tensors: Sequence[te.Tensor]) -> str | None:
    """The narrow float dtype of a kernel's tensors, in which tensor cores take their operands; None without one."""
    return next((str(t.dtype) for t in tensors if str(t.dtype) in NARROW), None)


class TileEmitter:
    """Emits one kernel."""

    def __init__(self, kernel: TileKernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        self.kernel, self.math, self.gpu = kernel, math, gpu
        self.targets = {t: buffers[t] for t in kernel.emits}
        self.memory = {t: b for t, b in buffers.items() if t not in self.targets}
        self.warps, self.prefetch = int(decisions["warps"]), bool(decisions.get("prefetch", 1)) and kernel.walked is not None
        self.threads = self.warps * WARP
        self.narrow = narrow_dtype(list(buffers))
        self.program = Program(kernel, set(self.memory), self.warps, self.narrow, int(decisions.get("parts", 1)))
        self.rank = len(kernel.space)
        self.parallel = [k for k in range(self.rank) if k != kernel.walked]
        self.analyzer = sym.Analyzer()
        self.homes: dict[tuple[te.Tensor, str], Shared] = {}
        self.registers: dict[te.Tensor, Any] = {}
        self.fixed: dict[int, tuple[Any, Any]] = {}
        self._plan_shared()

    # ---------------------------------------------------------------- shared memory

    def _plan_shared(self) -> None:
        program = self.program
        last: dict[te.Tensor, int] = {}
        for node in program.steps:
            for source in [*[r.source for r in node.reads], *[o.source for o in node.operands or ()]]:
                last[source] = max(last.get(source, 0), node.position)
        end = len(program.steps)
        for tensor, held in program.held.items():
            node = held.node
            lasting = node.role == "state"
            first, final = (0, end) if lasting else (0 if node.role == "load" else node.position, last.get(tensor, node.position))
            wide = str(tensor.dtype)
            kinds = [("wide", wide)] if held.wide else []
            kinds += [("narrow", str(self.narrow))] if held.narrow else []
            kinds += [("earlier", wide)] if held.earlier else []
            shape = tuple(padded(n) for n in node.extents) if len(node.extents) == 2 else tuple(node.extents)
            for kind, dtype in kinds:
                self.homes[tensor, kind] = Shared(f"{node.name}_{kind}", shape, dtype, first, final)
        self.nbytes = place(list(self.homes.values()))
        if self.nbytes > self.gpu.shared_bytes:
            raise PlanError(
                f"kernel '{self.kernel.name}' needs {self.nbytes} bytes of shared memory, a block has {self.gpu.shared_bytes}; "
                "choose a smaller chunk or narrower heads"
            )
        self.arena = Arena(self.nbytes)

    # ---------------------------------------------------------------- the kernel

    def emit(self) -> None:
        """The whole kernel."""
        kernel = self.kernel
        blocks: Any = None
        for k in self.parallel:
            blocks = kernel.space[k] if blocks is None else blocks * kernel.space[k]
        parts = self.program.parts
        grid = [blocks if blocks is not None else 1, *([parts] if parts > 1 else [])]
        with launch(grid, self.threads) as ((block, *part), thread):
            self.thread = thread
            self.part = part[0] if part else None
            self.analyzer.bind(thread, ir.Range(0, self.threads))
            self.arena.open(list(self.homes.values()))
            self.outer: list[Any] = [None] * self.rank
            rest = block
            for k in reversed(self.parallel):
                extent = kernel.space[k]
                here = rest if k == self.parallel[0] else tirx.truncmod(rest, extent)
                # Kept: the simplifier would repeat the division by a symbolic size wherever the index is used.
                self.outer[k] = self._let(f"o{k}", here if here is block else keep(here), extent)
                rest = rest if k == self.parallel[0] else self._let(f"rest{k}", keep(tirx.truncdiv(rest, extent)))
            self._allocate()
            if kernel.walked is None:
                self._fetch(None)
                self._body()
                return
            for node in self._states():
                self._start(node)
            self._walk(kernel.walked)

    def _walk(self, walked: int) -> None:
        kernel = self.kernel
        extent = kernel.extent
        index = lambda step: extent - 1 - step if kernel.reverse else step  # noqa: E731
        if self.prefetch:
            self.outer[walked] = self._let("first", index(tirx.const(0, "int32")), extent)
            self._fetch(None)
        with T.serial(0, extent) as step:
            self.outer[walked] = here = self._let("step", index(step), extent)
            if not self.prefetch:
                self._fetch(None)

            def ahead() -> None:
                self.outer[walked] = self._let("next", index(step + 1), extent)
                self._fetch(step + 1 < extent)
                self.outer[walked] = here

            self._body(ahead if self.prefetch else None)
            self.arena.settle()

    def _body(self, ahead: Callable[[], None] | None = None) -> None:
        for node in self._states():
            if scan_spec(node.tensor.op).exclusive:
                self._share(self.program.held[node.tensor])
        loads = [n for n in self.program.steps if n.role == "load"]
        for node in loads:
            self._load(node)
        if ahead is not None:
            ahead()
        for node in self.program.steps:
            if node.role != "load":
                self._nest(node)

    def _nest(self, node: Node) -> None:
        if node.role == "emit":
            self._write(node)
        elif node.role == "state":
            self._advance(node)
        elif node.role == "scan":
            self._scan(node)
        elif node.way == "contract":
            self._contract(node, fresh=True)
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
        if node.tensor in self.program.held and node.role not in ("emit", "state") and node.way in ("contract", "fragment", "rows", "rowstat"):
            self._share(self.program.held[node.tensor])

    # ---------------------------------------------------------------- small things

    def _states(self) -> list[Node]:
        return [n for n in self.program.steps if n.role == "state"]

    def _let(self, label: str, value: Any, extent: Any = None) -> Any:
        """`value` under a name, known to lie below `extent`."""
        if const_int(value) is not None:
            return value
        var = T.Bind(value)
        IRBuilder.name(label, var)
        if extent is not None:
            self.analyzer.bind(var, ir.Range(0, extent))
        return var

    def _allocate(self) -> None:
        for tensor, held in self.program.held.items():
            node = held.node
            if node.layout is None or not held.registers:
                continue
            count = node.layout.row_size if node.way in ("rows", "rowstat") else node.layout.size
            self.registers[tensor] = T.alloc_buffer([count], str(tensor.dtype), scope="local")
            IRBuilder.name(node.name, self.registers[tensor])

    def _home(self, tensor: te.Tensor, kind: str) -> Shared | None:
        return self.homes.get((tensor, kind))

    def _used(self, node: Node) -> list[Shared]:
        """The buffers that the reads of a nest may touch."""
        found = [self.homes[t, k] for t, k in self.homes if any(r.source is t or r.source.same_as(t) for r in node.reads)]
        return found

    def _writes(self, node: Node) -> list[Shared]:
        return [s for (t, _), s in self.homes.items() if t is node.tensor or t.same_as(node.tensor)]

    def _whole(self, node: Node, inner: Sequence[Any]) -> list[Any]:
        """The place in the stage of a place in this block's part of it."""
        if node.cut is None:
            return list(inner)
        extent = node.extents[node.cut]
        shift = self.part * extent
        return [self._let("whole", i + shift, extent * self.program.parts) if k == node.cut else i for k, i in enumerate(inner)]

    def _own(self, node: Node, inner: Sequence[Any]) -> list[Any]:
        """The place in this block's part of a place in the stage."""
        if node.cut is None:
            return list(inner)
        shift = self.part * node.extents[node.cut]
        return [self.analyzer.simplify(i - shift) if k == node.cut else i for k, i in enumerate(inner)]

    # ---------------------------------------------------------------- values

    def _values(self, node: Node, inner: Sequence[Any], at: Registers | None = None) -> Values:
        """Values at a point of a nest; with `at`, at the thread's element at these register dims of the nest's layout."""
        return self._values_at(self._whole(node, inner), node.layout if at is not None else None, at, node.way != "rows")

    def _values_at(
        self, inner: Sequence[Any], layout: Layout | None = None, at: Registers | None = None, column: bool = True, inline: bool = False
    ) -> Values:
        """Values at inner point `inner` of the stages; `column` says whether the point has one."""

        def find(tensor: te.Tensor, indices: list[Any]) -> Any:
            held = self.program.held.get(tensor)
            if held is None:
                return None
            when = self._aligned(tensor, indices)
            if when is None:
                return None
            return self._element(held, indices[self.rank :], when, list(inner), layout, at, column)

        return Values(self.kernel, self.memory, self.math, [*self.outer, *inner], self.analyzer, find, inline)

    def _aligned(self, tensor: te.Tensor, at: list[Any]) -> str | None:
        found = "here"
        for k in range(self.rank):
            place = self.fixed.get(k)
            if stages.equal(at[k], self.outer[k]) or (place is not None and stages.equal(at[k], place)):
                continue
            before = self.outer[k] + 1 if self.kernel.reverse else self.outer[k] - 1
            if k != self.kernel.walked or tensor not in self.kernel.anchors or not self.analyzer.can_prove_equal(at[k], before):
                return None
            found = "earlier"
        return found

    def _element(
        self, held: Held, inner: list[Any], when: str, point: list[Any], layout: Layout | None, at: Registers | None, column: bool
    ) -> Any:
        node, tensor = held.node, held.node.tensor
        if when == "earlier":
            return self._load_shared(self.homes[tensor, "earlier"], self._own(node, inner))
        if held.registers and layout is not None and at is not None and node.layout is not None:
            if node.way in ("rows", "rowstat"):
                if node.layout.same_rows(layout) and len(inner) == 1 and stages.equal(inner[0], point[0]):
                    return self.registers[tensor][(layout.row_register(at),)]
            elif node.layout == layout and column and len(inner) == 2 and all(stages.equal(a, b) for a, b in zip(inner, point, strict=True)):
                return self.registers[tensor][(layout.register(at),)]
        for kind in ("wide", "narrow"):
            shared = self.homes.get((tensor, kind))
            if shared is not None:
                value = self._load_shared(shared, self._own(node, inner))
                return value.astype(str(tensor.dtype)) if shared.dtype != str(tensor.dtype) else value
        raise PlanError(f"kernel '{self.kernel.name}': nest reads '{tensor.op.name}' where it is not held")

    @staticmethod
    def _load_shared(shared: Shared, inner: Sequence[Any]) -> Any:
        return shared.buffer[(shared.flat(list(inner)),)]

    # ---------------------------------------------------------------- loops

    @contextmanager
    def _over(self, layout: Layout, rows_only: bool = False) -> Iterator[tuple[Registers, Any, Any]]:
        """Loops over a thread's registers of a layout: (register dims, row, column)."""
        a, b, c, d = layout.dims
        extents = (a, 1, c, 1) if rows_only else (a, b, c, d)
        with ExitStack() as stack:
            at: list[Any] = [
                tirx.const(0, "int32") if n == 1 else stack.enter_context(T.unroll(0, n)) for n in extents
            ]
            row, column = layout.place(self.thread, (at[0], at[1], at[2], at[3]))
            # Padding is guarded wherever values are computed, so the analyzer may take rows and columns for real ones.
            r = self._let("row", row, layout.rows)
            k = self._let("column", column, layout.columns) if not rows_only else None
            yield (at[0], at[1], at[2], at[3]), r, k

    def _guard(self, layout: Layout, extents: Sequence[int], row: Any, column: Any = None) -> Any:
        """The condition under which an element of a layout is not padding, or None."""
        found = [row < extents[0]] if layout.extents[0] != extents[0] else []
        if column is not None and layout.extents[1] != extents[1]:
            found.append(column < extents[1])
        return conjunction(found)

    @contextmanager
    def _if(self, condition: Any) -> Iterator[None]:
        with ExitStack() as stack:
            if condition is not None:
                stack.enter_context(T.If(condition))
                stack.enter_context(T.Then())
            yield

    @contextmanager
    def _flat(self, extents: Sequence[int]) -> Iterator[list[Any]]:
        """Loops over all points of a small domain, spread over the threads of the block."""
        total = 1
        for n in extents:
            total *= n
        rounds = -(-total // self.threads)
        with ExitStack() as stack:
            turn = stack.enter_context(T.serial(0, rounds)) if rounds > 1 else tirx.const(0, "int32")
            number = self._let("point", turn * self.threads + self.thread, rounds * self.threads)
            if total % self.threads:
                stack.enter_context(T.If(number < total))
                stack.enter_context(T.Then())
            found: list[Any] = []
            rest = number
            for k in reversed(range(len(extents))):
                n = extents[k]
                here = tirx.const(0, "int32") if n == 1 else rest if k == 0 else tirx.truncmod(rest, n)
                found.insert(0, self._let(f"i{k}", here, n))
                rest = rest if n == 1 else tirx.truncdiv(rest, n)
            yield found

    # ---------------------------------------------------------------- loads

    def _load_shape(self, node: Node) -> tuple[int, ...]:
        return tuple(padded(n) for n in node.extents) if len(node.extents) == 2 else tuple(node.extents)

    def _load_value(self, node: Node, inner: Sequence[Any]) -> Any:
        if node.cut is not None:
            shift = self.part * node.extents[node.cut]
            inner = [i + shift if k == node.cut else i for k, i in enumerate(inner)]
        if node.from_memory:
            return self.memory[node.tensor][(*self.outer, *inner)]
        return self._values_at(inner, inline=True).compute(node.tensor)

    def _runs(self, node: Node) -> tuple[int, int]:
        """(elements of a run, rounds) in which the block loads a tile."""
        shape = self._load_shape(node)
        run = RUN if shape and shape[-1] % RUN == 0 and node.extents[-1] % RUN == 0 else 1
        total = 1
        for n in shape:
            total *= n
        return run, -(-(total // run) // self.threads)

    @contextmanager
    def _run(self, node: Node) -> Iterator[tuple[Any, list[Any], Any]]:
        """Loop over the runs of this thread: (register of the first element, inner point of it, whether there is one)."""
        shape = self._load_shape(node)
        run, rounds = self._runs(node)
        total = 1
        for n in shape:
            total *= n
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
        shape = self._load_shape(node)
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
                        T.buffer_store(shared.buffer, narrowed if inside is None else tirx.if_then_else(inside, narrowed, zero), [shared.flat(inner)])
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
                        mine = rounded(_at_lane(value, lane, v), shared.dtype)
                        if inside is not None:
                            mine = tirx.if_then_else(inside, mine, tirx.const(0, shared.dtype))
                        T.buffer_store(temporary, mine, [v])
                    step = min(run, vector.WIDEST // dtype_bytes(shared.dtype))
                    for part in range(0, run, step):
                        with T.vectorized(0, step) as v:
                            T.buffer_store(shared.buffer, temporary[(part + v,)], [shared.flat(inner) + part + v])

    # ---------------------------------------------------------------- registers

    def _share(self, held: Held) -> None:
        """Copies of what is in registers that others read from shared memory."""
        node, tensor = held.node, held.node.tensor
        homes = [s for kind in ("wide", "narrow") if (s := self._home(tensor, kind)) is not None]
        if not held.registers or not homes or node.layout is None:
            return
        self.arena.use([], homes)
        layout, source = node.layout, self.registers[tensor]
        if node.way in ("rows", "rowstat"):
            with self._over(layout, rows_only=True) as (at, row, _), self._if(conjunction([row < node.extents[0], self._leads(layout)])):
                for shared in homes:
                    T.buffer_store(shared.buffer, rounded(source[(layout.row_register(at),)], shared.dtype), [shared.flat([row])])
            return
        a, b, c, d = layout.dims
        for shared in homes:
            with ExitStack() as stack:
                at = [tirx.const(0, "int32") if n == 1 else stack.enter_context(T.unroll(0, n)) for n in (a, b, c)]
                row, first = layout.place(self.thread, (at[0], at[1], at[2], tirx.const(0, "int32")))
                limits = zip((row, first), layout.extents, shared.shape, strict=True)
                stack.enter_context(self._if(conjunction([i < n for i, held, n in limits if held > n])))
                e = tirx.const(0, "int32") if d == 1 else stack.enter_context(T.vectorized(0, d))
                value = rounded(source[(layout.register((at[0], at[1], at[2], e)),)], shared.dtype)
                T.buffer_store(shared.buffer, value, [shared.flat([row, first + e])])

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
        sides: list[Any] = []
        for k, side in enumerate(operands):
            if k == 0 and self.program.in_registers(node, side):
                sides.append(contract.InRegisters(self.registers[side.source], self.program.nodes[side.source].layout))
            else:
                kind = "narrow" if self.narrow is not None else "wide"
                sides.append(contract.InShared(self.homes[side.source, kind], side.turned))
        self.arena.use([s.shared for s in sides if isinstance(s, contract.InShared)], [])
        steps = self._contracted(node)
        if fresh:
            with T.unroll(0, layout.size) as r:
                T.buffer_store(target, tirx.const(0, str(node.tensor.dtype)), [r])
        if self.narrow is not None:
            contract.on_tensor_cores(layout, sides[0], sides[1], target, steps, self.narrow, self.thread)
        else:
            contract.on_threads(layout, sides[0], sides[1], target, steps, str(node.tensor.dtype), self.thread)

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
        with self._over(layout) as (at, row, column):
            register = layout.register(at)
            guard = self._guard(layout, node.extents, row, column)
            if guard is not None and clear:
                T.buffer_store(target, tirx.const(0, str(target.dtype)), [register])
            with self._if(guard):
                T.buffer_store(target, value(self._values(node, [row, column], at), at), [register])

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
        with T.unroll(0, layout.row_size) as r:
            T.buffer_store(target, identity(kind, dtype), [r])
        extents = [node.extents[0], layout.columns]
        with self._over(layout) as (at, row, column):
            register = layout.row_register(at)
            with self._if(self._guard(layout, extents, row, column)):
                values = self._values(node, [row, column], at)
                *values.point, column = values.point
                T.buffer_store(target, values.reduce_value(node.tensor, [column], target[(register,)]), [register])
        for mask in layout.row_lanes:
            with T.unroll(0, layout.row_size) as r:
                other = T.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, "uint32"), target[(r,)], mask, WARP, WARP)
                T.buffer_store(target, combine(kind, target[(r,)], other), [r])

    # ---------------------------------------------------------------- shared memory alone

    def _store(self, node: Node, value: Any, inner: Sequence[Any]) -> None:
        for kind in ("wide", "narrow"):
            shared = self._home(node.tensor, kind)
            if shared is not None:
                T.buffer_store(shared.buffer, rounded(value, shared.dtype), [shared.flat(list(inner))])

    def _clear(self, node: Node) -> None:
        """Zeros in the padding of an operand's tile."""
        narrow = self._home(node.tensor, "narrow") or self._home(node.tensor, "wide")
        if narrow is None or len(node.extents) != 2 or tuple(node.extents) == narrow.shape:
            return
        for shared in self._writes(node):
            with self._flat(shared.shape) as point, self._if(tirx.any(*[i >= n for i, n in zip(point, node.extents, strict=True)])):
                T.buffer_store(shared.buffer, tirx.const(0, shared.dtype), [shared.flat(point)])

    def _flat_map(self, node: Node) -> None:
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        with self._flat(node.extents) as inner:
            self._store(node, self._values(node, inner).compute(node.tensor), inner)

    def _flat_reduce(self, node: Node) -> None:
        """One thread an element of the result, the reduced axes in order."""
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        kind, dtype = stages.reduction(node.tensor), str(node.tensor.dtype)
        over = [int(const_int(a.dom.extent)) for a in stages.reduce_axes(node.tensor)]
        with self._flat(node.extents) as inner:
            total = T.alloc_buffer([1], dtype, scope="local")
            T.buffer_store(total, identity(kind, dtype), [0])
            with ExitStack() as stack:
                steps = [stack.enter_context(T.serial(0, n)) for n in over]
                for var, n in zip(steps, over, strict=True):
                    self.analyzer.bind(var, ir.Range(0, n))
                values = self._values(node, inner)
                T.buffer_store(total, values.reduce_value(node.tensor, steps, total[(0,)]), [0])
            self._store(node, total[(0,)], inner)

    def _scan(self, node: Node) -> None:
        """A scan inside the tile: one thread a line."""
        self.arena.use(self._used(node), self._writes(node))
        self._clear(node)
        scan = node.tensor
        spec, sources = scan_spec(scan.op), scan_inputs(scan.op)
        axis = spec.axis - self.rank
        length = node.extents[axis]
        rest = [n for k, n in enumerate(node.extents) if k != axis]
        shared = self.homes[scan, "wide"] if (scan, "wide") in self.homes else self.homes[scan, "narrow"]
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
        del shared

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
            values.point = [*outer, *values.point[self.rank :]]
            return values.value_at(initial, list(values.point))

        held = self.program.held[scan]
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
        del held

    def _advance(self, node: Node) -> None:
        """The state after this step."""
        scan, sources = node.tensor, scan_inputs(node.tensor.op)
        held = self.program.held[scan]
        fused = node.operands is not None
        if held.earlier:
            self._keep_earlier(node)
        self.arena.use(self._used(node), [] if node.way == "fragment" else self._writes(node))
        if node.way == "fragment":
            layout, target = node.layout, self.registers[scan]
            assert layout is not None
            if not fused or scan_spec(scan.op).decay or scan_spec(scan.op).reset:
                zero = sources["x"] if fused else None

                def moved(values: Values, at: Any) -> Any:
                    if zero is not None:
                        values.held = _without(values.held, zero)
                    return values.walk_value(scan, sources, list(values.point), target[(layout.register(at),)])

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
            self._store(node, values.walk_value(scan, sources, list(values.point), before), inner or points)

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
                    T.buffer_store(earlier.buffer, self.registers[node.tensor][(layout.register(at),)], [earlier.flat([row, column])])
            return
        now = self.homes[node.tensor, "wide"]
        with self._flat(node.extents or [1]) as inner:
            T.buffer_store(earlier.buffer, self._load_shared(now, inner), [earlier.flat(inner)])

    # ---------------------------------------------------------------- results

    def _write(self, node: Node) -> None:
        tensor = node.tensor
        frame, target = self.kernel.frames[tensor], self.targets[tensor]
        self.arena.use(self._used(node), [])
        self.fixed = {axis: place for axis, place in frame.fixed.items()}

        def store(values: Values, padding: Any) -> None:
            indices = frame.indices(list(self.outer), values.point[self.rank :])
            guards = [g for g in frame.guards(tensor, list(self.outer), indices) if not self.analyzer.can_prove(g)]
            guard = conjunction([*([padding] if padding is not None else []), *guards])
            with self._if(guard):
                held = tensor in self.program.held
                value = values.element(tensor, indices) if held else values.math(values._stage(tensor, list(indices)))
                T.buffer_store(target, rounded(value, str(target.dtype)), indices)

        if node.way == "fragment":
            layout = node.layout
            assert layout is not None
            with self._over(layout) as (at, row, column):
                store(self._values(node, [row, column], at), self._guard(layout, node.extents, row, column))
        elif node.way == "rows":
            layout = node.layout
            assert layout is not None
            with self._over(layout, rows_only=True) as (at, row, _):
                padding = conjunction([g for g in (self._guard(layout, node.extents, row), self._leads(layout)) if g is not None])
                store(self._values(node, [row], at), padding)
        else:
            with self._flat(node.extents or [1]) as points:
                inner = points if node.extents else []
                store(self._values(node, inner), None)
        self.fixed = {}


class _Before:
    """The element before in a scan, whatever its index: it is in a register."""

    def __init__(self, register: Any):
        self.register = register

    def __getitem__(self, _: Any) -> Any:
        return self.register[(0,)]


def _without(find: Any, tensor: te.Tensor) -> Any:
    """`find` in which `tensor` is 0: what is left of a sum when its other term is added later."""

    def found(wanted: te.Tensor, at: list[Any]) -> Any:
        return tirx.const(0, str(tensor.dtype)) if wanted.same_as(tensor) else find(wanted, at)

    return found


def _at_lane(expr: Any, lane: Any, value: Any) -> Any:
    from tilegen.expression.walkers import substitute

    return substitute(expr, {lane: value})
