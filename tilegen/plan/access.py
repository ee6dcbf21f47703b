"""Where a kernel's points reach into other stages: same point, previous step, last step, or elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from tvm import te, tirx

from tilegen.expression.ragged import is_table
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import load_indices, load_tensor, loads, substitute
from tilegen.plan import stages
from tilegen.plan.kernel import Kernel


class Point:
    """A symbolic point of a kernel: one variable an axis, with the walked axis among them."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.space = [tirx.Var(f"p{k}", "int32") for k in range(len(kernel.space))]
        self.step = tirx.Var("t", "int32") if kernel.pattern == "walk" else None

    def full(self) -> list[Any]:
        """The indices of this point in a tensor that has an element for every point."""
        if self.step is None:
            return list(self.space)
        at = self.kernel.position
        return [*self.space[:at], self.step, *self.space[at:]]

    def shifted(self, by: int) -> list[Any]:
        """The same, `by` steps further along the walk."""
        step = self.step - by if self.kernel.reverse else self.step + by
        at = self.kernel.position
        return [*self.space[:at], step, *self.space[at:]]

    def last(self) -> list[Any]:
        """The indices of the last step of the walk."""
        at = self.kernel.position
        step = tirx.const(0, "int32") if self.kernel.reverse else self.kernel.extent - 1
        return [*self.space[:at], step, *self.space[at:]]


def matches(indices: list[Any], wanted: list[Any]) -> bool:
    """Whether two index lists are provably equal."""
    return len(indices) == len(wanted) and all(stages.equal(a, b) for a, b in zip(indices, wanted, strict=True))


def scan_reads(scan: te.Tensor, indices: list[Any]) -> list[tuple[te.Tensor, list[Any]]]:
    """What the step of a scan at `indices` reads (its initial state aside): broadcast axes are read at 0."""
    found = []
    for role, source in scan_inputs(scan.op).items():
        if role == "initial":
            axis = scan_spec(scan.op).axis
            found.append((source, indices[:axis] + indices[axis + 1 :]))
        else:
            at = [tirx.const(0, "int32") if stages.const_int(n) == 1 else i for i, n in zip(indices, source.shape, strict=True)]
            found.append((source, at))
    return found


def stage_reads(tensor: te.Tensor, indices: list[Any], step: Any = None) -> list[tuple[te.Tensor, list[Any]]]:
    """What element `indices` of a stage reads; `step` is the value of a walked reduction's axis."""
    if stages.kind(tensor) == "scan":
        return scan_reads(tensor, indices)
    mapping = dict(zip(stages.axes(tensor), indices, strict=True))
    if step is not None:
        mapping |= {axis.var: step for axis in stages.reduce_axes(tensor)}
    return [(source, [substitute(i, mapping) for i in at]) for source, at in _own_reads(tensor)]


@lru_cache(maxsize=1 << 14)
def _own_reads(tensor: te.Tensor) -> list[tuple[te.Tensor, list[Any]]]:
    """The reads of a stage's body, in its own axis variables."""
    return [(load_tensor(load), load_indices(load)) for load in loads(stages.body(tensor))]


def anchors_below(tensor: te.Tensor, ready: Collection[te.Tensor]) -> set[te.Tensor]:
    """The anchors that the value of `tensor` needs, `tensor` itself excluded; what is `ready` in memory hides what is below it."""
    found: set[te.Tensor] = set()
    seen: set[te.Tensor] = set()
    stack = [source for source, _ in stages.reads(tensor)]
    while stack:
        current = stack.pop()
        if current in seen or current in ready:
            continue
        seen.add(current)
        if stages.is_anchor(current):
            found.add(current)
        else:
            stack += [source for source, _ in stages.reads(current)]
    return found


def tables_below(tensors: Collection[te.Tensor], ready: Collection[te.Tensor]) -> set[te.Tensor]:
    """The tables that `tensors` look something up in, themselves excluded; tables below those are theirs to compute."""
    found: set[te.Tensor] = set()
    seen: set[te.Tensor] = set()
    stack = [source for tensor in tensors for source, _ in stages.reads(tensor)]
    while stack:
        current = stack.pop()
        if current in seen or current in ready:
            continue
        seen.add(current)
        if is_table(current):
            found.add(current)
        else:
            stack += [source for source, _ in stages.reads(current)]
    return found


def fusible(tensor: te.Tensor, kernel: Kernel, ready: Collection[te.Tensor], *, final: bool = False) -> bool:
    """Whether `kernel` can compute `tensor` at each of its points (after its last step: `final`) from what it holds on chip.

    Anchors of the kernel must be read at the point itself or one step before (`final`: where they end); anchors of other
    kernels count as being in memory.
    """
    return _visit(tensor, kernel, ready, final) is not None


def latched(tensor: te.Tensor, kernel: Kernel, ready: Collection[te.Tensor]) -> list[te.Tensor]:
    """The stages whose value at the last step a final stage `tensor` reads and that the states alone do not tell."""
    return _visit(tensor, kernel, ready, True) or []


def _visit(tensor: te.Tensor, kernel: Kernel, ready: Collection[te.Tensor], final: bool) -> list[te.Tensor] | None:
    """The latched stages that computing `tensor` needs, or None when the kernel cannot compute it."""
    point = Point(kernel)
    walk = kernel.pattern == "walk"
    over_space = final or stages.kind(tensor) == "reduce"
    if not stages.same_extents(list(tensor.shape), list(kernel.space if over_space else kernel.domain())):
        return None
    own = set(kernel.anchors)
    seen: set[str] = set()
    latches: list[te.Tensor] = []

    def at_end(current: te.Tensor, indices: list[Any]) -> bool | None:
        """Whether a stage of a finished walk can be had; None when that depends on what it reads."""
        if walk and current not in ready and len(current.shape) == len(kernel.space) + 1 and matches(indices, point.last()):
            if current in own and stages.kind(current) == "scan" and not scan_spec(current.op).exclusive:
                return True
            if (current in own and stages.kind(current) == "scan") or _visit(current, kernel, ready, False) is not None:
                latches.append(current)
                return True
        if current in own:
            return stages.kind(current) == "reduce" and matches(indices, point.space)
        return None

    def at_step(current: te.Tensor, indices: list[Any]) -> bool | None:
        if current not in own:
            return None
        if stages.kind(current) == "reduce" or not walk:
            return False
        steps = [point.full()] if scan_spec(current.op).exclusive else [point.full(), point.shifted(-1)]
        return any(matches(indices, step) for step in steps)

    def visit(current: te.Tensor, indices: list[Any]) -> bool:
        key = f"{hash(current)} {indices}"
        if key in seen or current in ready:
            return True
        seen.add(key)
        if current is not tensor:
            known = (at_end if final else at_step)(current, indices)
            if known is not None:
                return known
            if stages.is_anchor(current):
                return True
        step = point.step if walk and stages.kind(current) == "reduce" else None
        return all(visit(source, at) for source, at in stage_reads(current, indices, step))

    return latches if visit(tensor, list(point.space if over_space else point.full())) else None
