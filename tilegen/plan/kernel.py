"""Kernels: groups of stages that one loop nest computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tvm import te

from tilegen.expression.scan import scan_spec
from tilegen.plan import stages

Pattern = Literal["walk", "map", "reduce", "tile", "scatter"]


@dataclass(frozen=True)
class Marks:
    """States of a walk that are written now and then, for a walk back that computes what lies between anew.

    Parameters
    ----------
    tensor : [scans, *domain with the number of marks in place of the walked extent].
    every : steps from one mark to the next; the first holds the states before the first step.
    """

    tensor: te.Tensor
    every: int


@dataclass
class Kernel:
    """One loop nest.

    A *walk* runs along one axis and keeps the state of every scan and reduction along it on chip; a *reduce* computes
    reductions over their own axes; a *map* computes points that do not depend on each other; a *scatter* adds the rows of one
    tensor up at data-dependent places, and its points are those of the rows.

    Parameters
    ----------
    space : extents of the points that are independent of each other (for a walk: without the walked axis).
    extent, reverse : of the walked axis, and whether it is walked from its end.
    position : index of the walked axis in the scanned tensors.
    anchors : the reductions and scans computed here.
    emits : stages written at every point; finals : stages of shape `space` written after a walk or reduction.
    latches : stages of a walk whose value at the last step a final stage reads.
    loads : what is read from memory, known once the plan is complete.
    marks : where a walk leaves its states for a later one.
    once : a walk of one step, as those of a decoding step are.
    partial : [parts, anchors, *space], where a reduction leaves sums of parts before it adds these up; [parts, *result] of a scatter-add.
    """

    pattern: Pattern
    space: list[Any]
    extent: Any = None
    reverse: bool = False
    position: int = 0
    anchors: list[te.Tensor] = field(default_factory=list)
    emits: list[te.Tensor] = field(default_factory=list)
    finals: list[te.Tensor] = field(default_factory=list)
    latches: list[te.Tensor] = field(default_factory=list)
    directed: bool = False
    name: str = ""
    loads: list[te.Tensor] = field(default_factory=list)
    marks: Marks | None = None
    once: bool = False
    partial: te.Tensor | None = None

    def domain(self) -> list[Any]:
        """The extents of a stage that has one element at every point of this kernel."""
        if self.pattern != "walk":
            return list(self.space)
        return [*self.space[: self.position], self.extent, *self.space[self.position :]]

    def writes(self) -> list[te.Tensor]:
        """Everything this kernel writes to memory."""
        return [*self.emits, *self.finals]

    def accepts(self, anchor: te.Tensor) -> bool:
        """Whether the loops of this kernel fit an anchor."""
        other = kernel_for(anchor)
        if "scatter" in (self.pattern, other.pattern):
            return False
        if self.pattern != other.pattern or not stages.same_extents(self.space, other.space):
            return False
        if self.pattern == "reduce":
            mine, its = stages.reduce_axes(self.anchors[0]), stages.reduce_axes(anchor)
            return stages.same_extents([a.dom.extent for a in mine], [a.dom.extent for a in its])
        if not stages.equal(self.extent, other.extent):
            return False
        return not (self.directed and other.directed) or (self.reverse, self.position) == (other.reverse, other.position)

    def latch(self, tensors: Iterable[te.Tensor]) -> None:
        """Keep the values of `tensors` from step to step, for a final stage."""
        self.latches += [tensor for tensor in tensors if tensor not in self.latches]

    def add(self, anchor: te.Tensor) -> None:
        """Compute `anchor` here too."""
        other = kernel_for(anchor)
        if other.directed and not self.directed:
            self.reverse, self.position, self.directed = other.reverse, other.position, True
        self.anchors.append(anchor)


def kernel_for(anchor: te.Tensor) -> Kernel:
    """An empty kernel with the loops that `anchor` needs."""
    if stages.kind(anchor) == "scan":
        spec = scan_spec(anchor.op)
        shape = list(anchor.shape)
        extent = shape.pop(spec.axis)
        return Kernel("walk", shape, extent, spec.reverse, spec.axis, directed=True)
    if stages.kind(anchor) == "scatter":
        return Kernel("scatter", list(anchor.op.inputs[0].shape))
    over = stages.reduce_axes(anchor)
    if walkable(anchor):
        # Any position of the walked axis serves a reduction; before the last axis is where scans have it.
        return Kernel("walk", list(anchor.shape), over[0].dom.extent, position=max(0, len(anchor.shape) - 1))
    return Kernel("reduce", list(anchor.shape))


def walkable(anchor: te.Tensor) -> bool:
    """Whether a reduction is a running one: along a single symbolic axis, of values that all points have for themselves.

    A contraction (its operands share no axis but the reduced one) is not: it wants tiles, not a walk.
    """
    over = stages.reduce_axes(anchor)
    if len(over) != 1 or stages.const_int(over[0].dom.extent) is not None or not len(anchor.shape):
        return False
    inner = stages.axes(anchor)[-1]
    return all(
        any(index.same_as(inner) for index in indices if hasattr(index, "same_as"))
        for source, indices in stages.reads(anchor)
        if len(source.shape) > len(anchor.shape)
    )
