"""The value of a stage at a point of a kernel, as a TIR expression with shared parts bound to variables.

A stage read exactly at the kernel's point is bound once; a stage read elsewhere (one step before, under a guard, at
another index) is substituted where it is read, so that nothing is evaluated that its guard forbids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import frexp, isfinite, ldexp
from typing import Any

from tvm import ir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression import scalars
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import (
    WIDE,
    call_name,
    const_int,
    find,
    is_load,
    load_indices,
    load_tensor,
    prim,
    rewrite,
    substitute,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.access import matches
from tilegen.plan.guards import is_read
from tilegen.plan.keep import keep
from tilegen.plan.kernel import Kernel

MathRule = Callable[[Any, Callable[[str, Any], Any]], Any]
"""``rule(expr, bind)`` replaces functions by what the target computes fast (see `tilegen.plan.fastmath`)."""


def identity(kind: str, dtype: str) -> Any:
    """The neutral element of a reduction or scan."""
    if kind == "sum":
        return tirx.const(0, dtype)
    if dtype.startswith(("float", "bfloat")):
        return tirx.const(float("inf") if kind == "min" else float("-inf"), dtype)
    return tirx.max_value(dtype) if kind == "min" else tirx.min_value(dtype)


def combine(kind: str, a: Any, b: Any) -> Any:
    """The combination of two values of a reduction or scan."""
    if kind == "sum":
        return a + b
    if kind == "logsumexp":
        return scalars.logaddexp(a, b)
    return tirx.max(a, b) if kind == "max" else tirx.min(a, b)


class Evaluator:
    """Values at one point.

    Parameters
    ----------
    point : block variables of the kernel's space.
    step : index along the walked axis, or None outside a walk.
    state : the buffers that hold this kernel's anchors, indexed by `point`.
    """

    def __init__(self, kernel: Kernel, buffers: Mapping[te.Tensor, Any], math: MathRule, point: Sequence[Any], step: Any, state: Any):
        self.kernel, self.buffers, self.state = kernel, buffers, state
        self.math = lambda expr: math(expr, self._bind)
        self.point, self.step = list(point), step
        at = kernel.position
        self.full = self.point if step is None else [*self.point[:at], step, *self.point[at:]]
        self.previous: dict[te.Tensor, Any] = {}
        self.current: dict[te.Tensor, Any] = {}
        self.bound: dict[tuple[te.Tensor, Any], Any] = {}
        self.latches: Mapping[te.Tensor, Any] = {}
        self.lets: set[Any] = set()
        self.ending = False
        self.computing: set[te.Tensor] = set()
        self.written = set(kernel.writes())  # being written here, so not yet to be read

    # ---------------------------------------------------------------- entry points

    def open_states(self) -> None:
        """Read every state once, before any is advanced."""
        for anchor, buffer in self.state.items():
            self.previous[anchor] = self._bind(f"{anchor.op.name}_before", buffer[tuple(self.point)])

    def start(self, anchor: te.Tensor) -> Any:
        """The state before the first step."""
        if stages.kind(anchor) == "reduce":
            return identity(stages.reduction(anchor), str(anchor.dtype))
        initial = scan_inputs(anchor.op).get("initial")
        return identity(scan_spec(anchor.op).kind, str(anchor.dtype)) if initial is None else self.math(self.element(initial, self.point))

    def advance(self, anchor: te.Tensor) -> Any:
        """The state of `anchor` after this step."""
        if stages.kind(anchor) == "reduce":
            return self.reduce_step(anchor, [self.step])
        if anchor not in self.current:
            spec, sources = scan_spec(anchor.op), scan_inputs(anchor.op)
            before = self._before(anchor)
            if spec.decay:
                before = before * self._broadcast(sources["decay"], anchor)
            x = self.element(sources["x"], self.full)
            value = combine(spec.kind, before, x)
            self.current[anchor] = self._bind(anchor.op.name, self.math(value))
        return self.current[anchor]

    def _before(self, scan: te.Tensor) -> Any:
        """The state that this step of a scan takes over: another where it starts a sequence."""
        spec = scan_spec(scan.op)
        if not spec.reset:
            return self.previous[scan]
        return self.restarted(scan, self.full, self.previous[scan])

    def restarted(self, scan: te.Tensor, indices: Sequence[Any], before: Any) -> Any:
        """`before`, or what the element at `indices` takes over where it starts a sequence."""
        spec, sources = scan_spec(scan.op), scan_inputs(scan.op)
        start = self.element(sources["reset"], _broadcast_indices(sources["reset"], indices, scan.shape))
        fresh = self.element(sources["entry"], indices) if spec.entry else identity(spec.kind, str(scan.dtype))
        return tirx.Select(start != 0, fresh, before)

    def reduce_step(self, anchor: te.Tensor, steps: Sequence[Any]) -> Any:
        """The accumulator of a reduction after adding the element at `steps`."""
        before = self.previous[anchor] if anchor in self.previous else self.state[anchor][tuple(self.point)]
        return self.reduce_value(anchor, steps, before)

    def reduce_value(self, anchor: te.Tensor, steps: Sequence[Any], before: Any) -> Any:
        """`before` combined with the element at `steps`."""
        return combine(stages.reduction(anchor), before, self.term_value(anchor, steps))

    def term_value(self, anchor: te.Tensor, steps: Sequence[Any]) -> Any:
        """The element of a reduction at `steps`."""
        mapping = dict(zip(stages.axes(anchor), self.point, strict=True))
        mapping |= {axis.var: step for axis, step in zip(stages.reduce_axes(anchor), steps, strict=True)}
        return self.expression(substitute(stages.body(anchor), mapping))

    def expression(self, expr: Any) -> Any:
        """The value of an expression whose variables are elements of this kernel's already."""
        return self.math(self._resolve(expr))

    def at_point(self, tensor: te.Tensor) -> Any:
        """The value of a stage with one element for every point (and step)."""
        if stages.kind(tensor) == "scan":
            return self.element(tensor, self.full)
        return self._stage(tensor, self.full)

    def at_end(self, tensor: te.Tensor, latches: Mapping[te.Tensor, Any]) -> Any:
        """The value of a stage of shape `space` after the last step; `latches` hold what the last step left."""
        self.ending, self.latches = True, latches
        if tensor in self.state:
            return self.previous[tensor]
        return self._stage(tensor, self.point)

    def value_at(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        """The value of a stage at any indices, functions written out."""
        value = self.element(tensor, indices) if tensor in self.buffers and tensor not in self.computing else self._stage(tensor, list(indices))
        return self.math(value)

    def walk_value(
        self, scan: te.Tensor, sources: Mapping[str, te.Tensor], indices: Sequence[Any], before: Any, restarted: bool = False
    ) -> Any:
        """The state of a scan after the element at `indices`, given the one before, which may be `restarted` already."""
        spec = scan_spec(scan.op)
        if spec.reset and not restarted:
            before = self.restarted(scan, indices, before)
        if spec.decay:
            before = before * self.element(sources["decay"], _broadcast_indices(sources["decay"], indices, scan.shape))
        return self.math(combine(spec.kind, before, self.element(sources["x"], indices)))

    def scan_value(
        self, scan: te.Tensor, sources: Mapping[str, te.Tensor], here: Sequence[Any], there: Sequence[Any], first: Any, buffer: Any
    ) -> Any:
        """An element of a scan that reads its result back: at `here`, with the element before at `there`."""
        spec = scan_spec(scan.op)
        initial = sources.get("initial")
        start = identity(spec.kind, str(scan.dtype))
        if initial is not None:
            start = self.element(initial, [i for k, i in enumerate(here) if k != spec.axis])
        if not spec.exclusive:
            return self.walk_value(scan, sources, here, tirx.if_then_else(first, start, buffer[tuple(there)]))
        after = self.walk_value(scan, sources, there, buffer[tuple(there)])
        value = tirx.if_then_else(first, start, after)
        return self.restarted(scan, here, value) if spec.reset else value

    # ---------------------------------------------------------------- elements

    def element(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        """One element of any tensor."""
        if self.ending and tensor in self.latches and len(indices) > len(self.point):
            return self.latches[tensor][tuple(self.point)]
        if tensor in self.state:
            return self._own(tensor, list(indices))
        if tensor in self.buffers and tensor not in self.written:
            return self.buffers[tensor][tuple(indices)]
        if stages.kind(tensor) != "map":
            raise PlanError(f"kernel '{self.kernel.name}' needs stage '{tensor.op.name}', which no kernel before it writes")
        return self._stage(tensor, list(indices))

    def _own(self, anchor: te.Tensor, indices: list[Any]) -> Any:
        if self.ending:
            return self.previous[anchor]
        if stages.kind(anchor) == "reduce":
            raise PlanError(f"kernel '{self.kernel.name}' reads its own reduction '{anchor.op.name}' before it is complete")
        if matches(indices, self.full):
            return self._before(anchor) if scan_spec(anchor.op).exclusive else self.advance(anchor)
        return self.previous[anchor]

    def _stage(self, tensor: te.Tensor, indices: list[Any]) -> Any:
        """A map stage: bound once where it is read at the point, substituted elsewhere."""
        here = self._here(indices)
        if (tensor, here) in self.bound:
            return self.bound[tensor, here]
        value = self._resolve(substitute(stages.body(tensor), dict(zip(stages.axes(tensor), indices, strict=True))))
        if here is not None:
            value = self.bound[tensor, here] = self._bind(tensor.op.name, self.math(value))
        return value

    def _resolve(self, expr: Any) -> Any:
        """`expr` with every read replaced by the value it means here."""

        def load(call: Any) -> Any:
            return self.element(load_tensor(call), load_indices(call)) if is_load(call) else call

        return rewrite(selects(rewrite(expr, ir.Call, load), self.point, self.kernel.space, self.lets), prim.Cast, plain_cast)

    def _broadcast(self, tensor: te.Tensor, scan: te.Tensor | None = None) -> Any:
        return self.element(tensor, _broadcast_indices(tensor, self.full, [None] * len(self.full) if scan is None else scan.shape))

    def _here(self, indices: Sequence[Any]) -> tuple[Any, ...] | None:
        """Which of the point's own indices these are, in order (constants aside); None for an element elsewhere.

        Only an element here may be bound outside all guards: it exists for every point.
        """
        positions: list[Any] = []
        rest = iter(enumerate(self.full))
        for index in indices:
            if const_int(index) is not None:
                positions.append(str(const_int(index)))
                continue
            at = next((k for k, own in rest if stages.equal(index, own)), None)
            if at is None:
                return None
            positions.append(at)
        return tuple(positions)

    def _bind(self, name: str, value: Any) -> Any:
        # TVM's legalisation of narrow floats retypes the value of a binding but not its variable.
        if isinstance(value, ir.Var) or str(value.ty.dtype) in WIDE:
            return value
        var = T.Bind(keep(value))
        self.lets.add(var)
        IRBuilder.name(name.replace(".", "_"), var)
        return var


def _broadcast_indices(tensor: te.Tensor, indices: Sequence[Any], shape: Sequence[Any]) -> list[Any]:
    """`indices` of an element of `shape` with 0 where `tensor` has one element for all of several."""
    zero = tirx.const(0, "int32")
    return [zero if const_int(n) == 1 and (m is None or const_int(m) != 1) else i for i, n, m in zip(indices, tensor.shape, shape, strict=True)]


def plain_cast(cast: Any) -> Any:
    """Casts to the same dtype vanish; a widened bfloat16 is its bits shifted up (TVM forgets to legalise this in a binding)."""
    before, after = str(cast.value.ty.dtype), str(cast.ty.dtype)
    if before == after:
        return cast.value
    if before == "bfloat16":
        wide = from_bfloat16(cast.value)
        return wide if after == "float32" else wide.astype(after)
    return cast


def from_bfloat16(value: Any) -> Any:
    """A bfloat16 as the float32 of the same value: its bits shifted up, on either side of every condition around it.

    A literal is widened here: TVM's legalisation makes what is read integers and leaves a literal beside it as it is, on which code
    generation by LLVM dies.
    """
    if isinstance(value, prim.FloatImm):
        mantissa, exponent = frexp(number := float(value.value))
        # Eight significant bits, ties to even.
        return tirx.const(ldexp(round(mantissa * 256), exponent - 8) if isfinite(number) else number, "float32")
    if call_name(value) == "if_then_else":
        condition, *sides = value.args
        return tirx.if_then_else(condition, *[from_bfloat16(side) for side in sides])
    if isinstance(value, prim.Select):
        return tirx.Select(value.condition, from_bfloat16(value.true_value), from_bfloat16(value.false_value))
    return tirx.reinterpret("float32", tirx.reinterpret("uint16", value).astype("uint32") << tirx.const(16, "uint32"))


def selects(expr: Any, point: Sequence[Any], space: Sequence[Any], lets: Collection[Any]) -> Any:
    """`if_then_else` as a branch-free select where both sides may always be evaluated, or where it must be one.

    Both sides may when they read nothing guarded.  A condition that changes along the last axis of the point is in a vector,
    which TVM cannot branch on (it gives all lanes what the last one gets): there, a guarded read goes to the first element instead.
    """
    extents = {v: const_int(n) for v, n in zip(point, space, strict=False) if isinstance(v, ir.Var)}
    lane = point[-1] if point else None

    def inside(index: Any, extent: Any) -> bool:
        if const_int(index) is not None:
            return True
        mine, its = extents.get(index) if isinstance(index, ir.Var) else None, const_int(extent)
        return isinstance(index, ir.Var) and (mine is None or its is None or mine <= its)

    def harmless(e: Any) -> bool:
        return all(inside(i, n) for load in find(e, is_read) for i, n in zip(load.indices, load.source.shape, strict=True))

    def in_lanes(condition: Any) -> bool:
        return any(v.same_as(lane) or v in lets for v in variables(condition))

    def change(call: Any) -> Any:
        if call_name(call) != "if_then_else":
            return call
        if all(harmless(e) for e in call.args):
            return tirx.Select(*call.args)
        condition = call.args[0]
        if not in_lanes(condition):
            return call

        def anywhere(taken: Any) -> Callable[[Any], Any]:
            """A read at the first element where its side of the guard is not taken."""

            def moved(load: Any) -> Any:
                pairs = zip(load.indices, load.source.shape, strict=True)
                return load.source[tuple(i if inside(i, n) else tirx.Select(taken, i, tirx.const(0, "int32")) for i, n in pairs)]

            return moved

        sides = []
        for side, taken in zip(call.args[1:], (condition, tirx.Not(condition)), strict=True):
            for kind in {type(load) for load in find(side, is_read)}:
                side = rewrite(side, kind, anywhere(taken))
            sides.append(side)
        return tirx.Select(condition, *sides)

    return rewrite(expr, ir.Call, change)
