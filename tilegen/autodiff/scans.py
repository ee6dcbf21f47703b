"""Adjoints of the primitives that TE cannot express: scans and the scatter-add.

The adjoint of a scan is a scan the other way.  With f[t] the factor by which step t takes over the state before it (the
decay, or exp(z[t-1] - z[t]) of a log-sum-exp), and c[t] what the later steps send to step t::

    y[t] = f[t] y[t-1] + x[t]        r[t] = dy[t] + f[t+1] r[t+1]       dx[t] = r[t]       df[t] = r[t] y[t-1]
    y[t+1] = a[t] y[t] + x[t]        c[t-1] = a[t] c[t] + dy[t]         dx[t] = c[t]       da[t] = c[t] y[t]

The second is an exclusive scan and reads everything at its own step.  The first reads the factor of the next step: one
stage, which all scans with that factor share.  Where a sequence starts, nothing is sent back: the reset of step t + 1
resets the adjoint at step t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.term import Term, axis_names, fresh, guarded
from tilegen.errors import AutodiffError
from tilegen.expression.gather import scatter_spec
from tilegen.expression.scan import scan, scan_inputs, scan_spec
from tilegen.expression.stages import compute
from tilegen.expression.walkers import Expr, const_int, dtype_of

Contribution = tuple[te.Tensor, Term]


def primitive_terms(op: te.ExternOp, adjoint: te.Tensor, wanted: Any, shared: dict[Any, te.Tensor]) -> list[Contribution]:
    """The contributions of a scan or scatter-add to the adjoints of its inputs."""
    spec = scan_spec(op)
    if spec is not None and spec.entry:
        raise AutodiffError(f"stage '{op.name}': a scan with entries has no adjoint; differentiate first, then pack sequences")
    if spec is not None and spec.kind in ("sum", "logsumexp"):
        step = _ScanAdjoint(op, adjoint, shared)
        terms = step.exclusive() if spec.exclusive else step.inclusive()
    elif spec is not None:
        raise AutodiffError(
            f"stage '{op.name}': a running {spec.kind} has no adjoint; write stop_gradient(scan(..., kind={spec.kind!r})), "
            "which is right where the result does not depend on it, as with the shift of a softmax"
        )
    elif scatter_spec(op) is not None:
        terms = _scatter_add(op, adjoint)
    else:
        raise AutodiffError(f"stage '{op.name}': an external operation has no adjoint; mark it with stop_gradient")
    return [(tensor, term) for tensor, term in terms if tensor in wanted]


class _ScanAdjoint:
    """One scan and the tools to write its adjoint."""

    def __init__(self, op: te.ExternOp, adjoint: te.Tensor, shared: dict[Any, te.Tensor]) -> None:
        self.shared = shared
        self.op, self.spec, self.y, self.dy = op, scan_spec(op), op.output(0), adjoint
        inputs = scan_inputs(op)
        self.x = inputs["x"]
        self.decay, self.initial, self.reset = (inputs.get(role) for role in ("decay", "initial", "reset"))
        self.axis, self.length = self.spec.axis, self.x.shape[self.spec.axis]
        self.shape = list(self.x.shape)

    # ---- positions

    def shifted(self, i: Any, steps: int) -> list[Any]:
        """Element `i` moved by `steps` in the direction of the scan."""
        by = -steps if self.spec.reverse else steps
        return [v + by if k == self.axis else v for k, v in enumerate(i)]

    def has_earlier(self, t: Any) -> Expr:
        return t + 1 < self.length if self.spec.reverse else t > 0

    def has_later(self, t: Any) -> Expr:
        return t > 0 if self.spec.reverse else t + 1 < self.length

    def first(self, i: Any) -> list[Any]:
        """Element `i` of a tensor without the scan axis, as the first step of the scan."""
        start = self.length - 1 if self.spec.reverse else tirx.const(0, "int32")
        return [*i[: self.axis], start, *i[self.axis :]]

    def carried(self, i: Any) -> list[Any]:
        """Element `i` without its position on the scan axis."""
        return [v for k, v in enumerate(i) if k != self.axis]

    @staticmethod
    def broadcast(tensor: te.Tensor, i: Any) -> Expr:
        return tensor(*[0 if const_int(n) == 1 else v for n, v in zip(tensor.shape, i, strict=True)])

    def is_reset(self, i: Any) -> list[Expr]:
        return [] if self.reset is None else [tirx.NE(self.broadcast(self.reset, i), 0)]

    # ---- parts

    def later_reset(self) -> te.Tensor | None:
        """Nonzero where the next step starts a sequence."""
        if self.reset is None:
            return None
        none = tirx.const(0, "int32")

        def body(*i: Any) -> Expr:
            return tirx.if_then_else(self.has_later(i[self.axis]), self.reset(*self.shifted(i, 1)), none)

        return compute(self.reset.shape, body, f"{self.op.name}_ends")

    def back(self, x: te.Tensor, decay: te.Tensor | None, exclusive: bool) -> te.Tensor:
        """The scan of `x` against the direction of this one."""
        return scan(
            x,
            axis=self.axis,
            decay=decay,
            reset=self.later_reset(),
            reverse=not self.spec.reverse,
            exclusive=exclusive,
            name=f"d{self.op.name}_carry" if exclusive else f"d{self.op.name}_sum",
        )

    def before(self, i: Any) -> tuple[list[Expr], Expr]:
        """The state before step `i`, resets not counted, and the conditions under which there is one."""
        earlier, previous = self.has_earlier(i[self.axis]), self.y(*self.shifted(i, -1))
        if self.initial is None:
            return [earlier], previous
        return [], tirx.if_then_else(earlier, previous, self.initial(*self.carried(i)))

    def factor(self) -> te.Tensor | None:
        """The share of the previous state in the new one; None is one everywhere."""
        if self.spec.kind == "sum":
            return self.decay

        def body(*i: Any) -> Expr:
            conditions, previous = self.before(i)
            return guarded([*conditions, self.exists(self.y(*i))], tirx.exp(previous - self.y(*i)))

        return compute(self.shape, body, f"{self.op.name}_share", axes=axis_names(self.x))

    def later(self, factor: te.Tensor | None) -> te.Tensor | None:
        """The factor of the next step, zero after the last; the same for all scans that share it."""
        if factor is None or const_int(factor.shape[self.axis]) == 1:
            return factor
        key = (factor, self.axis, self.spec.reverse)
        if key not in self.shared:
            none = tirx.const(0, str(factor.dtype))

            def body(*i: Any) -> Expr:
                return tirx.if_then_else(self.has_later(i[self.axis]), factor(*self.shifted(i, 1)), none)

            self.shared[key] = compute(factor.shape, body, f"{factor.op.name}_later", axes=axis_names(factor))
        return self.shared[key]

    def exists(self, z: Expr) -> Expr:
        """Whether a log-sum-exp has any term: an empty one is -inf, and its gradient zero."""
        return z >= tirx.min_value(dtype_of(z))

    # ---- adjoints

    def inclusive(self) -> list[Contribution]:
        factor = self.factor()
        total = self.back(self.dy, self.later(factor), exclusive=False)
        step = lambda i: total(*i)
        i = fresh(self.x)
        value = step(i)
        if self.spec.kind == "logsumexp":
            value = guarded([self.exists(self.y(*i))], tirx.exp(self.x(*i) - self.y(*i)) * value)
        terms = [(self.x, Term(i, value))]
        if self.decay is not None and self.steady():
            terms.append(self.steady_decay_term())
        elif self.decay is not None:
            terms.append(self.decay_term(lambda i: self.from_before(i, step(i))))
        if self.initial is not None:
            terms.append(self.initial_term(factor, step))
        return terms

    def exclusive(self) -> list[Contribution]:
        carry = self.back(self.dy, self.decay, exclusive=True)
        i = fresh(self.x)
        terms = [(self.x, Term(i, carry(*i)))]
        if self.decay is not None:
            terms.append(self.decay_term(lambda i: carry(*i) * self.y(*i)))
        if self.initial is not None:
            terms.append(self.initial_term(self.decay, lambda i: carry(*i), lambda i: self.dy(*i)))
        return terms

    def from_before(self, i: Any, value: Expr) -> Expr:
        """`value` times the state that step `i` takes over."""
        conditions, previous = self.before(i)
        return guarded([*conditions, *self.continues(i)], value * previous)

    def continues(self, i: Any) -> list[Expr]:
        """No guard, or that step `i` starts no sequence."""
        return [tirx.Not(c) for c in self.is_reset(i)]

    def steady(self) -> bool:
        """Whether one decay serves all steps of a sequence."""
        return const_int(self.decay.shape[self.axis]) == 1 and const_int(self.length) != 1

    def steady_decay_term(self) -> Contribution:
        """The sum over steps of dy[t] e[t] with e[t] = dy[t]/df = f e[t-1] + y[t-1], a scan the way of the scan itself.

        It meets y as it is computed; the sum of dx[t] y[t-1] would need one of two opposite scans in memory.
        """
        names, axis = axis_names(self.x), self.axis

        def fed(*i: Any) -> Expr:
            conditions, previous = self.before(i)
            return guarded([*conditions, *self.continues(i)], previous)

        feed = compute(self.shape, fed, f"{self.op.name}_before", axes=names)
        slope = scan(feed, axis=axis, decay=self.decay, reset=self.reset, reverse=self.spec.reverse, name=f"{self.op.name}_slope")
        time = te.reduce_axis((0, self.length), names[axis])
        at = lambda i: [*i[:axis], time.var, *i[axis:]]
        rest = [k for k in range(len(self.shape)) if k != axis]
        each = compute(
            [self.shape[k] for k in rest],
            lambda *i: te.sum(self.dy(*at(i)) * slope(*at(i)), axis=time),
            f"d{self.decay.op.name}_each",
            axes=[names[k] for k in rest],
        )
        return self.decay_term(lambda i: each(*self.carried(i)), over=rest)

    def decay_term(self, value: Any, over: Sequence[int] | None = None) -> Contribution:
        """`value` summed over the axes along which the decay is broadcast; only those of `over` if given."""
        target = fresh(self.decay)
        narrow = [
            k
            for k, (m, n) in enumerate(zip(self.decay.shape, self.shape, strict=True))
            if const_int(m) == 1 and const_int(n) != 1 and (over is None or k in over)
        ]
        inner = {k: tirx.Var(f"r{k}", "int32") for k in narrow}
        body = value([inner.get(k, v) for k, v in enumerate(target)])
        return self.decay, Term(target, body, [(v, self.shape[k]) for k, v in inner.items()])

    def initial_term(self, factor: te.Tensor | None, step: Any, direct: Any = None) -> Contribution:
        """What the first step sends to the state before it."""
        target = fresh(self.initial)
        i = self.first(target)
        value = step(i) if factor is None else self.broadcast(factor, i) * step(i)
        if direct is not None:
            value = value + direct(i)
        return self.initial, Term(target, guarded(self.continues(i), value))


def _scatter_add(op: te.ExternOp, adjoint: te.Tensor) -> list[Contribution]:
    """Every update receives the adjoint of the row that it was added to."""
    axis, (updates, index) = scatter_spec(op).axis, op.inputs
    i = fresh(updates)
    position = index(*[0 if const_int(n) == 1 and k != axis else v for k, (n, v) in enumerate(zip(index.shape, i, strict=True))])
    row = adjoint(*[position if k == axis else v for k, v in enumerate(i)])
    inside = [position >= 0, position < op.output(0).shape[axis]]
    return [(updates, Term(i, guarded(inside, row)))]
