"""Values of a walk at one step, with the states that a thread holds."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.plan import stages
from tilegen.plan.evaluate import Evaluator, combine, identity
from tilegen.plan.gpu.walk_strata import Decay


class Step(Evaluator):
    """An `Evaluator` whose states are given one by one."""

    def hold(self, scan: te.Tensor, value: Any) -> None:
        """The state of `scan` before this step."""
        self.state = {**self.state, scan: value}
        self.previous[scan] = self._bind(f"{scan.op.name}_before", value)

    def passed(self, decay: Decay, scan: te.Tensor, before: Any) -> Any:
        """`before` times what this step passes on of the state before: nothing where a sequence starts."""
        dtype = str(before.ty.dtype)
        if decay.reset is not None:
            start = self._broadcast(scan_inputs(scan.op)["reset"])
            before = tirx.Select(start != 0, tirx.const(0, dtype), before)
        if decay.factor is not None:
            before = before * self._broadcast(scan_inputs(scan.op)["decay"])
        return self.math(before)

    def added(self, anchor: te.Tensor, before: Any, counts: Any) -> Any:
        """A reduction after this step, where `counts` says that the step exists; None where other steps add nothing."""
        after = self.reduce_value(anchor, [self.step], before)
        return after if counts is None else tirx.Select(counts, after, before)


def neutral(anchor: te.Tensor) -> Any:
    """The state that changes nothing."""
    kind = stages.reduction(anchor) if stages.kind(anchor) == "reduce" else scan_spec(anchor.op).kind
    return identity(kind, str(anchor.dtype))


def resumed(scan: te.Tensor, before: Any, local: Any, passed: Any | None) -> Any:
    """The state after a group of steps: `local` from an empty start, `passed` of the state `before`."""
    spec = scan_spec(scan.op)
    if passed is None:
        return combine(spec.kind, before, local)
    # Where nothing passes, what was before must not come through as 0 * inf either.
    whole = passed * before if spec.decay else before
    joined = combine(spec.kind, whole, local)
    return tirx.Select(passed == tirx.const(0, str(passed.ty.dtype)), local, joined) if spec.reset else joined
