"""One block of a tile kernel while it is being written: its place, its registers and shared memory, values and loops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import ir, sym, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.walkers import conjunction, const_int
from tilegen.plan import stages
from tilegen.plan.evaluate import MathRule
from tilegen.plan.gpu.contract import Fragments
from tilegen.plan.gpu.func import WARP, Buffers, Decisions
from tilegen.plan.gpu.holding import place_of
from tilegen.plan.gpu.layout import TF32, Layout
from tilegen.plan.gpu.program import NARROW, Held, Node, Program
from tilegen.plan.gpu.shared import Arena, Shared, divide, place
from tilegen.plan.gpu.values import Values
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import Gpu

TENSOR_CORES = 80
"""The capability from which there is mma.sync m16n8k16; older GPUs contract thread by thread."""

Registers = tuple[Any, Any, Any, Any]


class TooLarge(PlanError):
    """A block needs more shared memory than the GPU has."""


def narrow_dtype(tensors: Sequence[te.Tensor]) -> str | None:
    """The narrow float dtype of a kernel's tensors, in which tensor cores take their operands; None without one."""
    return next((str(t.dtype) for t in tensors if str(t.dtype) in NARROW), None)


def narrow_of(kernel: TileKernel, gpu: Gpu) -> str | None:
    """The dtype in which a kernel's operands go to the tensor cores of a GPU; None where threads contract."""
    return _narrow_of(kernel, gpu, [*kernel.memory, *kernel.emits])


def _narrow_of(kernel: TileKernel, gpu: Gpu, tensors: Sequence[te.Tensor]) -> str | None:
    if gpu.capability < TENSOR_CORES or kernel.room is not None:
        return None
    return TF32 if kernel.tf32 else narrow_dtype(tensors)


def homes_of(program: Program) -> dict[tuple[te.Tensor, str], Shared]:
    """The shared buffers of a program by stage and kind ("wide", "narrow", "earlier"), with the nests between which each is live."""
    found: dict[tuple[te.Tensor, str], Shared] = {}
    last: dict[te.Tensor, int] = {}
    for node in program.steps:
        for source in [*[r.source for r in node.reads], *[o.source for o in node.operands or ()]]:
            last[source] = max(last.get(source, 0), node.position)
    for tensor, held in program.held.items():
        node = held.node
        final = len(program.steps) if node.role == "state" else last.get(tensor, node.position)
        first = 0 if node.role in ("state", "load") else node.position
        wide = str(tensor.dtype)
        kinds = [("wide", wide)] if held.wide else []
        rounded = program.narrow == TF32
        kinds += [("narrow", wide if rounded else str(program.narrow))] if held.narrow else []
        kinds += [("earlier", wide)] if held.earlier else []
        for kind, dtype in kinds:
            spread, tf32 = program.kernel.only_products() or rounded, rounded and kind == "narrow"
            found[tensor, kind] = Shared(f"{node.name}_{kind}", node.tile, dtype, first, final, spread=spread, tf32=tf32)
    return found


def shared_bytes(kernel: TileKernel, gpu: Gpu, warps: int, parts: int) -> int:
    """The shared memory that a block of a kernel takes."""
    return place(list(homes_of(Program(kernel, kernel.memory, warps, narrow_of(kernel, gpu), parts)).values()))


class Block:
    """What the nests of one block share: where stages are held, and how a thread reads them."""

    def __init__(self, kernel: TileKernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        self.kernel, self.math, self.gpu = kernel, math, gpu
        self.targets = {t: buffers[t] for t in kernel.emits}
        self.memory = {t: b for t, b in buffers.items() if t not in self.targets}
        self.warps, self.prefetch = int(decisions["warps"]), bool(decisions.get("prefetch", 1)) and kernel.walked is not None
        self.past_registers = self.prefetch and int(decisions["prefetch"]) > 1 and gpu.capability >= TENSOR_CORES
        self.threads = self.warps * WARP
        self.narrow = _narrow_of(kernel, gpu, list(buffers))
        self.stages, self.resident = int(decisions.get("stages", 2)), int(decisions.get("resident", 1))
        parts, across = int(decisions.get("parts", 1)), int(decisions.get("across", 1))
        self.program = Program(kernel, set(self.memory), self.warps, self.narrow, parts, across)
        self.rank = len(kernel.space)
        self.parallel = [k for k in range(self.rank) if k != kernel.walked]
        self.analyzer = sym.Analyzer()
        self.thread: Any = None
        self.part: Any = None
        self.outer: list[Any] = [None] * self.rank
        self.homes: dict[tuple[te.Tensor, str], Shared] = {}
        self.fragments = Fragments({})
        self.registers: dict[te.Tensor, Any] = {}
        self.fixed: dict[int, Any] = {}
        self.ends: dict[int, tuple[Any, Any]] = {}
        self.side: bool | None = None  # the side of the program's choice that nests are being written for
        self._plan_shared()

    # ---------------------------------------------------------------- shared memory

    def _plan_shared(self) -> None:
        self.homes = homes_of(self.program)
        self.near, self.far = list(self.homes.values()), list[Shared]()
        if self.kernel.room is not None:
            self.near, self.far = divide(self.near, self.gpu.shared_bytes)
        self.nbytes = place(self.near)
        if self.nbytes > self.gpu.shared_bytes:
            raise TooLarge(
                f"kernel '{self.kernel.name}' needs {self.nbytes} bytes of shared memory, a block has {self.gpu.shared_bytes}; "
                "choose a smaller chunk or narrower heads"
            )
        self.arena = Arena(self.nbytes, self._turns())

    def _turns(self) -> int:
        """How many copies of shared memory the steps of a walk use in turn."""
        lasting = any(n.way != "fragment" for n in self._states()) or any(kind == "earlier" for _, kind in self.homes)
        room = self.gpu.shared_bytes // max(1, self.nbytes)
        return min(self.stages, room) if self.prefetch and not lasting and room > 1 else 1

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
            if node.layout is None or not held.registers or tensor in self.program.onto:
                continue
            count = node.layout.row_size if node.way in ("rows", "rowstat") else node.layout.size
            self.registers[tensor] = T.alloc_buffer([count], str(tensor.dtype), scope="local")
            IRBuilder.name(node.name, self.registers[tensor])
        for tensor, first in self.program.onto.items():
            self.registers[tensor] = self.registers[first]
        if self.program.branch is not None:
            self.decided = T.alloc_buffer([1], "int32", scope="local")
            IRBuilder.name("choice", self.decided)

    def _home(self, tensor: te.Tensor, kind: str) -> Shared | None:
        return self.homes.get((tensor, kind))

    def _used(self, node: Node) -> list[Shared]:
        """The buffers that the reads of a nest may touch."""
        # Sets compare tensors by what they are of: one stage may have several objects.
        sources = {r.source for r in node.reads if self.side is None or r.side in (None, self.side)}
        return [home for (tensor, _), home in self.homes.items() if tensor in sources]

    def _writes(self, node: Node) -> list[Shared]:
        return [home for (tensor, _), home in self.homes.items() if tensor in {node.tensor}]

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
        self,
        inner: Sequence[Any],
        layout: Layout | None = None,
        at: Registers | None = None,
        column: bool = True,
        inline: bool = False,
    ) -> Values:
        """Values at inner point `inner` of the stages; `column` says whether the point has one."""

        def find(tensor: te.Tensor, indices: list[Any]) -> Any:
            held = self.program.held.get(tensor)
            if held is None:
                return None
            when = place_of(self.kernel, tensor, indices, self.outer, self.fixed)
            if when is None:
                return None
            return self._element(held, indices[self.rank :], when, list(inner), layout, at, column)

        values = Values(self.kernel, self.memory, self.math, [*self.outer, *inner], self.analyzer, find, inline)
        branch, side = self.program.branch, self.side
        if branch is not None and side is not None:
            values.assumed = lambda expr: branch.assumed(expr, side, self._is_here)
        values.products = [
            self.registers[t]
            for t, held in self.program.held.items()
            if held.node.way == "contract" or (held.node.way == "fragment" and self.program.chooses(t))
        ]
        return values

    def _is_here(self, at: Sequence[Any]) -> bool:
        """Whether outer indices are those of this block's point."""
        return (
            place_of(self.kernel, self.kernel.emits[0], [self.analyzer.simplify(i) for i in at], self.outer, self.fixed) == "here"
        )

    def _element(
        self, held: Held, inner: list[Any], when: str, point: list[Any], layout: Layout | None, at: Registers | None, column: bool
    ) -> Any:
        node, tensor = held.node, held.node.tensor
        if tensor in self.program.onto.values():
            return tirx.const(0, str(tensor.dtype))  # the product that went on in its registers has the sum
        if when == "earlier":
            return self._load_shared(self.homes[tensor, "earlier"], self._own(node, inner))
        if held.registers and layout is not None and at is not None and node.layout is not None:
            if node.way in ("rows", "rowstat"):
                if node.layout.same_rows(layout) and len(inner) == 1 and stages.equal(inner[0], point[0]):
                    return self.registers[tensor][(layout.row_register(at),)]
            elif (
                node.layout == layout
                and column
                and len(inner) == 2
                and all(stages.equal(a, b) for a, b in zip(inner, point, strict=True))
            ):
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
    def _over(
        self, layout: Layout, rows_only: bool = False, blocks: tuple[int, int] | None = None
    ) -> Iterator[tuple[Registers, Any, Any]]:
        """Loops over a thread's registers of a layout, or of some of its blocks of columns: (register dims, row, column)."""
        a, b, c, d = layout.dims
        first, end = blocks or (0, b)
        extents = (a, 1, c, 1) if rows_only else (a, end - first, c, d)
        with ExitStack() as stack:
            at: list[Any] = [tirx.const(0, "int32") if n == 1 else stack.enter_context(T.unroll(0, n)) for n in extents]
            at[1] = at[1] + first if first else at[1]
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
    def _flat(self, extents: Sequence[int], lanes: int = 1) -> Iterator[list[Any]]:
        """Loops over all points of a small domain, spread over the threads of the block.

        With several `lanes` a point is the business of as many neighbouring threads; threads without a point do the last one
        again, so that whole warps can exchange values.
        """
        total = math.prod(extents)
        rounds = -(-total * lanes // self.threads)
        with ExitStack() as stack:
            turn = stack.enter_context(T.serial(0, rounds)) if rounds > 1 else tirx.const(0, "int32")
            number = self._let("point", turn * self.threads + self.thread, rounds * self.threads)
            if lanes > 1:
                number = self._let("element", tirx.min(tirx.truncdiv(number, lanes), total - 1), total)
            elif total % self.threads:
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
