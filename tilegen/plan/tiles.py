"""Partition of a graph with tiled stages: one kernel for all results that a task can compute from one outer point."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import te

from tilegen.expression.ragged import placement
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import topological
from tilegen.plan import stages
from tilegen.plan.access import anchors_below, tables_below
from tilegen.plan.cost import stage_flops
from tilegen.plan.frames import Cone, Frame, cone, frame_of, is_everywhere, is_local, walk_axis
from tilegen.plan.kernel import Kernel, kernel_for
from tilegen.schedules.rule import Gpu


@dataclass
class TileKernel(Kernel):
    """Tasks over outer points (`space`); each computes `locals` in order and walks `walked` if there are scans along it.

    `reads` are stages that kernels before this one write, `memory` everything that is an argument and not written here,
    `precise` the results that a caller gets in a wider dtype than that of the arguments, `unread` those that nobody reads at
    tiles without elements; `room` is workspace for tiles that shared memory has no room for; `tf32` says whether operands of products in
    float32 are rounded to TF32, for the tensor cores of a GPU.
    """

    frames: dict[te.Tensor, Frame] = field(default_factory=dict)
    locals: list[te.Tensor] = field(default_factory=list)
    walked: int | None = None
    order: dict[te.Tensor, int] = field(default_factory=dict)
    reads: set[te.Tensor] = field(default_factory=set)
    memory: set[te.Tensor] = field(default_factory=set)
    precise: set[te.Tensor] = field(default_factory=set)
    unread: set[te.Tensor] = field(default_factory=set)
    needs: dict[te.Tensor, Cone] = field(default_factory=dict)
    room: te.Tensor | None = None
    tf32: bool = False

    def apart(self) -> list[TileKernel]:
        """A kernel for every result, each with what that one `needs`; what several need is computed by each."""
        return [
            dataclasses.replace(
                self,
                emits=[tensor],
                frames={tensor: self.frames[tensor]},
                locals=[t for t in self.locals if t in self.needs[tensor].locals],
                anchors=[t for t in self.anchors if t in self.needs[tensor].walks],
                reads=set(self.needs[tensor].memory),
                precise=self.precise & {tensor},
                needs={tensor: self.needs[tensor]},
            )
            for tensor in self.emits
        ]

    def separable(self) -> bool:
        """Whether every result can have a walk of its own: there are several, and none is computed from another."""
        needs = list(self.needs.values())
        dependent = any(t in one.locals | one.walks for one in needs for t in self.emits)
        return len(needs) > 1 and not dependent and all(one.walks for one in needs)

    def elements(self, at: list[Any]) -> list[Any]:
        """How many elements the tile at `at` has, as reads of tables; empty where a tile without any has work to do.

        Tables have room for more tiles than short sequences fill.  Nothing has to be written for a tile without elements
        when nothing is carried past it and what belongs to tiles, not to elements, is never read there.
        """
        others = [tensor for tensor, frame in self.frames.items() if not frame.ragged]
        if self.walked is not None or not all(tensor in self.unread for tensor in others):
            return []
        tables = {frame.ragged[k].count: count for frame in self.frames.values() for k, count in frame.counts(at).items()}
        return list(tables.values())

    def only_products(self) -> bool:
        """Whether each step of a walk does nothing but add products of tiles of memory to states."""
        local = not any(stages.is_anchor(source) for tensor in self.locals for source, _ in stages.reads(tensor))
        return self.walked is not None and local and {scan_inputs(scan.op)["x"] for scan in self.anchors} == set(self.locals)

    def multiplies(self, gpu: Gpu) -> bool:
        """Whether a step is products on tensor cores and what follows from them element by element, all of it in registers."""
        from tilegen.plan.gpu.block import narrow_of
        from tilegen.plan.gpu.program import Program

        program = Program(self, self.memory, 1, narrow_of(self, gpu))
        return (
            program.narrow is not None and not program.precise and all(n.way != "flat" or n.role == "load" for n in program.steps)
        )

    def state_elements(self, apart: bool = False) -> int:
        """The elements of the states that one block carries along, before it is shared out."""
        alone = self.apart() if apart else [self]
        count = lambda one, t: math.prod(stages.const_int(n) or 1 for n in list(t.shape)[len(one.space) :])  # noqa: E731
        return max(sum(count(one, t) for t in one.anchors) for one in alone)

    def shared_axis(self, apart: bool = False) -> int:
        """The extent of the widest axis of the results that blocks can share out; 1 when there is none."""
        from tilegen.plan.gpu.program import Program

        found = [Program(one, one.memory, 1, None).cuts for one in (self.apart() if apart else [self])]
        return math.gcd(*[1 if cuts is None else cuts[1] for cuts in found])

    def loaded_bytes(self, parts: int, apart: bool = False) -> int:
        """The bytes of the tiles of memory that a block loads for one step, in the dtype they have there."""
        from tilegen.plan.gpu.block import narrow_dtype
        from tilegen.plan.gpu.program import Program
        from tilegen.schedules.rule import dtype_bytes

        width = dtype_bytes(narrow_dtype([*self.memory, *self.emits]) or "float32")
        programs = [Program(one, one.memory, 1, None, parts) for one in (self.apart() if apart else [self])]
        return max(sum(math.prod(n.extents) for n in one.steps if n.role == "load") for one in programs) * width

    def shared_bytes(self, gpu: Gpu, warps: int, parts: int, apart: bool = False) -> int:
        """The shared memory of a block of `warps` warps that computes one of `parts` parts of the results."""
        from tilegen.plan.gpu.block import shared_bytes

        return max(shared_bytes(one, gpu, warps, parts) for one in (self.apart() if apart else [self]))

    def joins(self, needs: Cone) -> bool:
        """Whether a result with these needs can be computed here: no stage is held for this tile and read for others."""
        directions = {_direction(scan) for scan in {*needs.walks, *self.anchors}}
        held, its = {*self.locals, *self.anchors}, needs.locals | needs.walks
        return len(directions) <= 1 and not held & needs.memory and not its & self.reads


def has_tiles(tensors: Sequence[te.Tensor]) -> bool:
    """Whether a graph has reductions inside tiles; without them walks and maps are better."""
    return any(stages.kind(t) == "reduce" and is_local(t) for t in tensors)


class TilePartition:
    """The kernels that write `outputs`, in execution order; `ready` is in memory before the first.

    With `apart`, walks leave their states in memory, as they are or as one of the stages of that set, and whatever is computed from
    them is not walked.
    """

    def __init__(self, outputs: Sequence[te.Tensor], ready: Sequence[te.Tensor], *, apart: Collection[te.Tensor] | None = None):
        self.ready, self.apart = set(ready), apart
        placed = [placement(op.output(0)) for op in topological(outputs)]
        placing = [t for found in placed if found is not None for t in (found.first, found.count)]
        self.order = {op.output(0): k for k, op in enumerate(topological([*placing, *outputs]))}
        self.kernels: list[Kernel] = []
        self.memory: dict[te.Tensor, Kernel] = {}
        self.cones: dict[te.Tensor, tuple[Frame | None, Cone]] = {}
        self._demand(list(outputs))
        for tensor in sorted(self.cones, key=self.order.__getitem__):
            self._place(tensor)
        counts: dict[str, int] = {}
        for kernel in self.kernels:
            kernel.name = f"{kernel.pattern}{counts.setdefault(kernel.pattern, 0)}"
            counts[kernel.pattern] += 1
            if isinstance(kernel, TileKernel):
                if kernel.walked is None:
                    kernel.order = self._sequence(kernel)
                kernel.locals.sort(key=kernel.order.__getitem__)
                kernel.anchors.sort(key=kernel.order.__getitem__)

    def _sequence(self, kernel: TileKernel) -> dict[te.Tensor, int]:
        """The order of the stages of a kernel: results that need little come first, so that what only they need is held for a short time."""
        needed = lambda tensor: sum(stage_flops(t) for t in self.cones[tensor][1].locals)  # noqa: E731
        order = {op.output(0): k for k, op in enumerate(topological(sorted(kernel.emits, key=needed)))}
        return {**{t: k + len(order) for t, k in self.order.items()}, **order}

    def _demand(self, outputs: list[te.Tensor]) -> None:
        """Every tensor that must be written: the outputs, and what some result reads outside its own outer point."""
        stack = outputs
        plain: set[te.Tensor] = set()
        while stack:
            tensor = stack.pop()
            if tensor in self.cones or tensor in self.ready:
                continue
            frame = None if tensor in plain else frame_of(tensor, self.ready)
            if frame is None:
                needs = Cone(memory=self._sources(tensor))
            else:
                needs = cone(tensor, frame, self.ready)
                if self.apart is not None and (stored := self._apart(tensor)):
                    needs = self._without(tensor, frame, stored)
                # Scans of two directions cannot be walked by one task: what is not walked comes from memory.
                if len({_direction(scan) for scan in needs.walks}) > 1:
                    needs = self._one_way(tensor, frame, needs)
                needs = self._stored(tensor, frame, needs)
            self.cones[tensor] = (frame, needs)
            plain |= needs.plain
            stack += [t for t in needs.memory if t is not tensor]

    def _sources(self, tensor: te.Tensor) -> set[te.Tensor]:
        """What a result outside all tiles reads from memory."""
        if is_everywhere(tensor):
            return {t for t, _ in stages.reads(tensor) if stages.kind(t) != "input" and t not in self.ready}
        return anchors_below(tensor, self.ready) | tables_below([tensor], self.ready)

    def _one_way(self, tensor: te.Tensor, frame: Frame, needs: Cone) -> Cone:
        """The cone with only the scans of one direction: the result's own, or else that of the last ones.

        Those that the last ones depend on must be in memory for them in any case.
        """
        kept = _direction(tensor if walk_axis(tensor) is not None else max(needs.walks, key=self.order.__getitem__))
        stored = {scan for scan in needs.walks if _direction(scan) != kept}
        return self._without(tensor, frame, stored if self.apart is None else stored | needs.memory)

    def _without(self, tensor: te.Tensor, frame: Frame, stored: set[te.Tensor]) -> Cone:
        """The cone of a result that reads `stored` from memory."""
        rest = cone(tensor, frame, self.ready | stored)
        rest.memory |= stored - {tensor}
        return rest

    def _apart(self, tensor: te.Tensor) -> set[te.Tensor]:
        """What a result without walks reads of them, or what a scan adds where a step of that would be long."""
        assert self.apart is not None
        walk = stages.reads(tensor)[0][0] if tensor in self.apart else tensor
        if walk_axis(walk) is not None:
            added = scan_inputs(walk.op)["x"]
            return set() if added in self.ready or longest([added], self.ready) <= 1 else {added}
        found: set[te.Tensor] = set()
        seen, stack = {tensor}, [tensor]
        while stack:
            for source, _ in stages.reads(stack.pop()):
                if source in seen or source in self.ready:
                    continue
                seen.add(source)
                if source in self.apart or walk_axis(source) is not None:
                    found.add(source)
                else:
                    stack.append(source)
        return found

    def _stored(self, tensor: te.Tensor, frame: Frame, needs: Cone) -> Cone:
        """The cone in which what must be in memory for other outer points is read from there at this one too."""
        while (needs.memory & (needs.locals | needs.walks)) - {tensor}:
            known, plain = needs.memory, needs.plain
            needs = cone(tensor, frame, self.ready | known)
            needs.memory |= known
            needs.plain |= plain
        return needs

    def _place(self, tensor: te.Tensor) -> None:
        frame, needs = self.cones[tensor]
        written = [self.memory[t] for t in needs.memory if t in self.memory]
        bound = max((self._index(kernel) for kernel in written), default=-1)
        if frame is None:
            self._place_plain(tensor, bound)
            return
        kernel = self._home(frame, needs, bound)
        if kernel is None:
            kernel = TileKernel("tile", list(frame.extents), order=self.order)
            self.kernels.append(kernel)
        kernel.frames[tensor] = frame
        kernel.emits.append(tensor)
        kernel.needs[tensor] = needs
        kernel.reads |= needs.memory
        kernel.locals += [t for t in needs.locals if t not in kernel.locals]
        kernel.anchors += [t for t in needs.walks if t not in kernel.anchors]
        if kernel.anchors:
            kernel.walked, kernel.reverse = _direction(kernel.anchors[0])
            kernel.extent = kernel.space[kernel.walked]
        self.memory[tensor] = kernel

    def _home(self, frame: Frame, needs: Cone, bound: int) -> TileKernel | None:
        """Of the kernels after `bound` that can compute a result the first of those that compute most of what it needs anyway."""
        able = (kernel for kernel in self.kernels[bound + 1 :] if isinstance(kernel, TileKernel))
        able = (kernel for kernel in able if stages.same_extents(kernel.space, frame.extents) and kernel.joins(needs))
        shared = lambda kernel: sum(stage_flops(t) for t in needs.locals if t in kernel.locals)  # noqa: E731
        return max(able, key=shared, default=None)

    def _place_plain(self, tensor: te.Tensor, bound: int) -> None:
        """A result that reads nothing but memory, a reduction over symbolic axes, or a scatter-add."""
        if stages.kind(tensor) == "reduce":
            kernel = Kernel("reduce", list(tensor.shape), anchors=[tensor], finals=[tensor])
            self.kernels.append(kernel)
        elif stages.kind(tensor) == "scatter":
            kernel = kernel_for(tensor)
            kernel.anchors, kernel.emits = [tensor], [tensor]
            self.kernels.append(kernel)
        else:
            fitting = (
                k for k in self.kernels[bound + 1 :] if k.pattern == "map" and stages.same_extents(k.space, list(tensor.shape))
            )
            kernel = next(fitting, None) or Kernel("map", list(tensor.shape))
            if not kernel.emits:
                self.kernels.append(kernel)
            kernel.emits.append(tensor)
        self.memory[tensor] = kernel

    def _index(self, kernel: Kernel) -> int:
        return next(i for i, known in enumerate(self.kernels) if known is kernel)


def longest(tensors: Sequence[te.Tensor], ready: Collection[te.Tensor]) -> int:
    """The most reductions inside a tile that follow from one another, from memory or the states of walks to some results."""
    depth: dict[te.Tensor, int] = {}

    def of(tensor: te.Tensor) -> int:
        if tensor not in depth:
            depth[tensor] = 0
            if tensor not in ready and stages.kind(tensor) in ("map", "reduce"):
                below = max((of(source) for source, _ in stages.reads(tensor)), default=0)
                depth[tensor] = below + (stages.kind(tensor) == "reduce" and is_local(tensor))
        return depth[tensor]

    return max((of(tensor) for tensor in tensors), default=0)


def _direction(scan: te.Tensor) -> tuple[int, bool]:
    """(outer axis, reversed) of a walked scan."""
    axis = walk_axis(scan)
    spec = scan_spec(scan.op)
    assert axis is not None and spec is not None
    return axis, spec.reverse
