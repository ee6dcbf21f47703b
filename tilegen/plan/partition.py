"""Partition a graph into kernels and decide which tensors between them are written to memory.

Reductions and scans (*anchors*) get kernels; everything pointwise is recomputed where it is read, except where a
minimum vertex cut says that writing it once moves fewer bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
from tvm import te, tirx

from tilegen.expression.ragged import is_table
from tilegen.expression.walkers import call_name, find, is_load, size_estimate, topological
from tilegen.plan import stages
from tilegen.plan.access import anchors_below, fusible, latched, tables_below
from tilegen.plan.kernel import Kernel, kernel_for

COSTLY = {"exp", "exp2", "log", "log1p", "tanh", "sigmoid", "erf", "pow", "sqrt", "rsqrt", "sin", "cos"}
REUSE = 4
"""A costly pointwise operand that a reduction would recompute this many times is written to memory instead."""


class Partition:
    """The kernels of one graph, in execution order; `ready` are the tensors that are in memory before the first."""

    def __init__(self, outputs: Sequence[te.Tensor], ready: Sequence[te.Tensor]):
        self.outputs = list(outputs)
        self.ready = set(ready)
        self.kernels: list[Kernel] = []
        self.home: dict[te.Tensor, Kernel] = {}  # of anchors
        self.memory: dict[te.Tensor, Kernel] = {}  # tensors written, by the kernel that writes them
        self.order = [op.output(0) for op in topological(self.outputs)]
        self.tables: list[te.Tensor] = []
        needed = self._needed()
        for tensor in self.order:
            if tensor in needed and stages.is_anchor(tensor) and tensor not in self.ready:
                self._place(tensor)
        scattered = [anchor for anchor in self.home if stages.kind(anchor) == "scatter"]  # complete only in memory
        self.tables = [tensor for tensor in self.order if is_table(tensor) and tensor in needed]
        for tensor in [*self.tables, *scattered, *self.outputs]:
            self.write(tensor)
        for tensor in self._costly_operands(needed):
            self.write(tensor)
        self._cut_all()
        self.kernels = [kernel for kernel in self.kernels if kernel.anchors or kernel.writes()]
        counts: dict[str, int] = {}
        for kernel in self.kernels:
            kernel.name = f"{kernel.pattern}{counts.setdefault(kernel.pattern, 0)}"
            counts[kernel.pattern] += 1

    # ---------------------------------------------------------------- placing

    def _needed(self) -> set[te.Tensor]:
        """Stages that the outputs depend on without passing through what is ready."""
        seen: set[te.Tensor] = set()
        stack = list(self.outputs)
        while stack:
            tensor = stack.pop()
            if tensor in seen or tensor in self.ready:
                continue
            seen.add(tensor)
            stack += [source for source, _ in stages.reads(tensor)]
        return seen

    def _index(self, kernel: Kernel) -> int:
        return next(i for i, known in enumerate(self.kernels) if known is kernel)

    def _bound(self, tensor: te.Tensor) -> int:
        """The index of the last kernel that computes an anchor or a table `tensor` depends on; -1 for none."""
        homes = [self.home[a] for a in anchors_below(tensor, self.ready)]
        if self.tables:
            homes += [self.memory[t] for t in tables_below([tensor], self.ready) if t in self.memory]
        return max((self._index(home) for home in homes), default=-1)

    def _bound_in_memory(self, tensor: te.Tensor) -> int:
        """The index of the last kernel that writes something pointwise that `tensor` is computed from; -1 for none."""
        last, stack, seen = -1, [tensor], set()
        while stack:
            for source, _ in stages.reads(stack.pop()):
                if source in self.memory:
                    last = max(last, self._index(self.memory[source]))
                elif source not in seen and source not in self.ready and stages.kind(source) == "map":
                    seen.add(source)
                    stack.append(source)
        return last

    def _place(self, anchor: te.Tensor) -> None:
        bound = self._bound(anchor)
        if bound >= 0:
            kernel = self.kernels[bound]
            if kernel.accepts(anchor) and fusible(anchor, kernel, self.ready):
                kernel.add(anchor)
                self.home[anchor] = kernel
                return
        for kernel in self.kernels[bound + 1 :]:
            if kernel.accepts(anchor) and fusible(anchor, kernel, self.ready):
                kernel.add(anchor)
                self.home[anchor] = kernel
                return
        fresh = kernel_for(anchor)
        fresh.add(anchor)
        self.kernels.append(fresh)
        self.home[anchor] = fresh

    def write(self, tensor: te.Tensor) -> None:
        """Have `tensor` written to memory by the kernel that can compute it at the least cost."""
        if tensor in self.memory or tensor in self.ready:
            return
        if tensor in self.home:
            kernel = self.home[tensor]
            (kernel.finals if stages.kind(tensor) == "reduce" else kernel.emits).append(tensor)
            self.memory[tensor] = kernel
            return
        kernel = self._writer(tensor)
        if kernel is None:
            bound = max(self._bound(tensor), self._bound_in_memory(tensor))
            window = self.kernels[bound + 1 : self._first_reader(tensor)]
            kernel = next((k for k in window if k.pattern == "map" and stages.same_extents(k.space, list(tensor.shape))), None)
            if kernel is None:
                kernel = Kernel("map", list(tensor.shape))
                self.kernels.insert(bound + 1, kernel)
        final = kernel.pattern != "map" and not self._at_points(tensor, kernel)
        (kernel.finals if final else kernel.emits).append(tensor)
        if final:
            kernel.latch(latched(tensor, kernel, self.ready))
        self.memory[tensor] = kernel

    def _first_reader(self, tensor: te.Tensor) -> int:
        """The index of the first kernel that depends on `tensor`; their number if there is none."""
        below = {tensor}
        for later in self.order:
            if any(source in below for source, _ in stages.reads(later)):
                below.add(later)
        needing = (i for i, kernel in enumerate(self.kernels) if not below.isdisjoint([*kernel.anchors, *kernel.writes()]))
        return next(needing, len(self.kernels))

    def _at_points(self, tensor: te.Tensor, kernel: Kernel) -> bool:
        return kernel.pattern == "walk" and fusible(tensor, kernel, self.ready)

    def _writer(self, tensor: te.Tensor) -> Kernel | None:
        """An anchor kernel that has all `tensor` needs on chip or in memory, or None."""
        bound = self._bound(tensor)
        if bound < 0:
            return None
        kernel = self.kernels[bound]
        if self._at_points(tensor, kernel) or (kernel.pattern != "map" and fusible(tensor, kernel, self.ready, final=True)):
            return kernel
        return None

    def _costly_operands(self, needed: set[te.Tensor]) -> list[te.Tensor]:
        """Pointwise stages with transcendental functions that a reduction of many more points reads."""
        found = []
        for anchor in self.home:
            if stages.kind(anchor) != "reduce":
                continue
            points = size_estimate(anchor.shape) * size_estimate([a.dom.extent for a in stages.reduce_axes(anchor)])
            stack = [source for source, _ in stages.reads(anchor)]
            while stack:
                tensor = stack.pop()
                if stages.kind(tensor) != "map" or tensor in self.ready:
                    continue
                if points >= REUSE * size_estimate(tensor.shape) and is_costly(tensor):
                    found.append(tensor)
                else:
                    stack += [source for source, _ in stages.reads(tensor)]
        found += [tensor for kernel in self.kernels if kernel.pattern == "walk" for tensor in self._steady_operands(kernel)]
        return [tensor for tensor in self.order if tensor in set(found) and tensor in needed]

    def _steady_operands(self, kernel: Kernel) -> list[te.Tensor]:
        """What every step of a walk would compute anew though it is the same for many of them: coefficients, most often."""
        found: list[te.Tensor] = []
        points = size_estimate(kernel.domain())
        stack = [*kernel.anchors, *kernel.emits]
        seen = set(stack)
        while stack:
            for source, _ in stages.reads(stack.pop()):
                if source in seen or source in self.ready or stages.kind(source) != "map":
                    continue
                seen.add(source)
                copies = is_load(stages.body(source))
                if points >= REUSE * size_estimate(source.shape) and not copies and self._costly_below(source):
                    found.append(source)
                else:
                    stack.append(source)
        return found

    def _costly_below(self, tensor: te.Tensor) -> bool:
        """Whether a pointwise stage, or one that it is made from, is costly."""
        if tensor in self.ready or stages.kind(tensor) != "map":
            return False
        return is_costly(tensor) or any(self._costly_below(source) for source, _ in stages.reads(tensor))

    # ---------------------------------------------------------------- materialisation

    def _cut_all(self) -> None:
        """From the last kernel to the first, since a cut adds writes, and new kernels, only before the kernel it serves."""
        done: list[Kernel] = []
        while open_ := [kernel for kernel in self.kernels if not any(kernel is known for known in done)]:
            self._cut(open_[-1])
            done.append(open_[-1])

    def _cut(self, kernel: Kernel) -> None:
        """Write the cheapest set of tensors through which all values from earlier kernels reach `kernel`."""
        graph, index = nx.DiGraph(), self._index(kernel)
        members = {*kernel.anchors, *kernel.writes()}
        seen: set[te.Tensor] = set()
        names: dict[te.Tensor, int] = {}
        stack = sorted(members, key=self.order.index)

        def node(tensor: te.Tensor) -> int:
            return names.setdefault(tensor, len(names))

        while stack:
            tensor = stack.pop()
            if tensor in seen or tensor in self.ready:
                continue
            seen.add(tensor)
            own = tensor in members
            earlier = tensor in self.home and not own
            me = node(tensor)
            # What only this kernel (or a later one) can compute must not be asked of memory.
            here = own or self._bound(tensor) >= index
            graph.add_edge((me, "in"), (me, "out"), **({} if here else {"capacity": self._price(tensor)}))
            if own:
                graph.add_edge((me, "out"), "sink")
            if earlier:
                graph.add_edge("source", (me, "in"))
                continue
            for source, _ in stages.reads(tensor):
                if source in self.ready or source.op.same_as(tensor.op):
                    continue
                graph.add_edge((node(source), "out"), (me, "in"))
                stack.append(source)
        if "source" not in graph or "sink" not in graph:
            return
        _, (reachable, _) = nx.minimum_cut(graph, "source", "sink")
        by_node = {index: tensor for tensor, index in names.items()}
        cut = [by_node[u[0]] for u, v in graph.edges if u in reachable and v not in reachable and u != "source"]
        for tensor in sorted(cut, key=self.order.index):
            self.write(tensor)

    def _price(self, tensor: te.Tensor) -> float:
        """Bytes of writing and reading `tensor`; next to nothing if it is written anyway."""
        if tensor in self.memory:
            return 1e-6
        cost = size_estimate(tensor.shape) * stages.element_bytes(tensor)
        if tensor not in self.home and self._writer(tensor) is None:
            return 3.0 * cost  # needs a kernel of its own, which reads its sources again
        return float(cost)


def is_costly(tensor: te.Tensor) -> bool:
    """Whether a stage has a function or a reduction."""
    return bool(find(stages.body(tensor), lambda e: call_name(e) in COSTLY or isinstance(e, tirx.Reduce)))
