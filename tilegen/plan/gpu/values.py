"""Values of stages in a tile kernel, as one thread computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isinf
from typing import Any

from tvm import ir, te, tirx

from tilegen.expression.walkers import call_name, dtype_of, find, is_load, load_indices, load_tensor, prim, rewrite, substitute
from tilegen.plan import stages
from tilegen.plan.access import stage_reads
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.gpu.masks import Domain
from tilegen.plan.kernel import Kernel

FUNCTIONS = {"exp", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "pow", "erf"}
INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of infinity."""
Find = Callable[[te.Tensor, list[Any]], Any]


class Values(Evaluator):
    """Values at one point of a tile.

    Parameters
    ----------
    held : ``held(stage, indices)`` gives an element of a held stage, or None for one that is computed here.
    inline : whether nothing is bound to a variable (vector loads look for reads in the whole expression).
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: Mapping[te.Tensor, Any],
        math: MathRule,
        point: Sequence[Any],
        analyzer: Any,
        held: Find,
        inline: bool,
    ):
        super().__init__(kernel, memory, math, point, None, {})
        self.math = lambda expr: math(rewrite(expr, ir.Call, self._exposed), self._bind)
        self.analyzer, self.held, self.inline = analyzer, held, inline
        self.defined: dict[Any, Any] = {}  # what variables were bound to
        self.products: Sequence[Any] = ()  # registers with the results of contractions
        self.written = set()
        self.assumed: Callable[[Any], Any] | None = None  # what is known of the kernel's choice, put into expressions
        self.domain: Domain | None = None  # what is known of conditions on the point
        self.located: Callable[[te.Tensor, Any], Any] | None = None  # where tables place an element, by the block's own variables

    def resolved(self, read: Any) -> Any:
        """The value of a read of any stage."""
        return self._resolve(read)

    def compute(self, tensor: te.Tensor) -> Any:
        """The value of a pointwise stage at the point itself."""
        mapping = dict(zip(stages.axes(tensor), self.point, strict=True))
        return self.math(self._resolve(substitute(stages.body(tensor), mapping)))

    def element(self, tensor: te.Tensor, indices: Sequence[Any]) -> Any:
        """One element, at simplified indices."""
        at = [self.analyzer.simplify(i) if hasattr(i, "ty") else i for i in indices]
        known = self.located(tensor, at[0]) if self.located is not None and at else None
        if known is not None:
            return known
        held = self.held(tensor, at)
        return super().element(tensor, at) if held is None else held

    def _resolve(self, expr: Any) -> Any:
        expr = expr if self.assumed is None else self.assumed(expr)

        def load(call: Any) -> Any:
            return self.element(load_tensor(call), load_indices(call)) if is_load(call) else call

        def select(call: Any) -> Any:
            """A choice between values that are at hand is no branch; where memory is read, the guard must stay one."""
            if call_name(call) != "if_then_else" or find(call, self._is_memory):
                return call
            condition, *sides = call.args
            # What is computed is computed before the choice, or the compiler makes a branch of it again.
            return tirx.Select(condition, *[self._bind("side", self.math(s)) if find(s, is_function) else s for s in sides])

        def settled(call: Any) -> Any:
            """A choice that is made already."""
            made = domain.decided(call.args[0]) if domain is not None and call_name(call) == "if_then_else" else None
            return call.args[1] if made is True else call.args[2] if made is False else call

        domain = self.domain
        if domain is not None:
            expr = rewrite(expr, ir.Call, settled)
        if domain is not None and call_name(expr) == "if_then_else":
            return self._choice(domain, *expr.args, select)
        value = rewrite(rewrite(expr, ir.Call, load), prim.Cast, plain_cast)
        return value if self.inline else rewrite(value, ir.Call, select)

    def _choice(self, domain: Domain, condition: Any, first: Any, second: Any, select: Callable[[Any], Any]) -> Any:
        """A choice, in whose first side its condition need not be asked again."""
        left = domain.decided(condition, context=True)
        # A guard around a read of memory stays: what reads it may be bound outside of the guard that makes it superfluous.
        if left is True and not self._reads_memory(first):
            return self._resolve(first)
        known = self.bound
        self.bound = dict(known)
        with domain.within(condition):
            taken = self._resolve(first)
        self.bound = known
        return select(tirx.if_then_else(self._resolve(condition), taken, self._resolve(second)))

    def _reads_memory(self, expr: Any) -> bool:
        """Whether computing `expr` here reads memory, itself or in a stage that is computed where it is read."""
        stack = [(load_tensor(load), load_indices(load)) for load in find(expr, is_load)]
        while stack:
            tensor, indices = stack.pop()
            at = [self.analyzer.simplify(i) if hasattr(i, "ty") else i for i in indices]
            if self.held(tensor, at) is not None:
                continue
            if tensor in self.buffers:
                return True
            if stages.kind(tensor) == "map":
                stack += stage_reads(tensor, at)
        return False

    def _is_memory(self, expr: Any) -> bool:
        return type(expr).__name__ in ("BufferLoad", "TensorLoad") and any(expr.source.same_as(b) for b in self.buffers.values())

    def _bind(self, name: str, value: Any) -> Any:
        if self.inline:
            return value
        var = super()._bind(name, value)
        if var is not value:
            self.defined[var] = value
        return var

    def _exposed(self, call: Any) -> Any:
        """``exp(a - b)`` with the factor of `a` in sight, which the base of the exponential takes in (see `tilegen.plan.gpu.math`)."""
        if call_name(call) != "exp" or not isinstance(call.args[0], prim.Sub):
            return call
        scaled = self._scaled(call.args[0].a)
        return call if scaled is None else tirx.exp(scaled - call.args[0].b)

    def _scaled(self, value: Any) -> Any:
        """`value` as a product with a constant, or as a choice between that and a constant; None if it is neither."""
        while isinstance(value, ir.Var) and value in self.defined:
            value = self.defined[value]
        if isinstance(value, prim.Select) and isinstance(value.false_value, prim.FloatImm):
            scaled = self._scaled(value.true_value)
            return None if scaled is None else tirx.Select(value.condition, scaled, value.false_value)
        if isinstance(value, prim.Mul) and isinstance(value.b, prim.FloatImm):
            return value
        mine = type(value).__name__ in ("BufferLoad", "TensorLoad") and any(value.source.same_as(b) for b in self.products)
        return prim.Mul(value, tirx.const(1.0, dtype_of(value))) if mine else None


def is_function(expr: Any) -> bool:
    """Whether an expression is a function or a quotient, which cost many instructions."""
    return isinstance(expr, prim.Div) or call_name(expr) in FUNCTIONS


def plain_cast(cast: Any) -> Any:
    """Casts to the same dtype vanish."""
    return cast.value if dtype_of(cast.value) == dtype_of(cast) else cast


def rounded(value: Any, dtype: str) -> Any:
    """`value` in `dtype`; what came from `dtype` and was only widened and guarded is not rounded again."""
    if dtype_of(value) == dtype:
        return value
    if isinstance(value, prim.Cast) and dtype_of(value.value) == dtype:
        return value.value
    if call_name(value) == "if_then_else":
        return tirx.if_then_else(value.args[0], rounded(value.args[1], dtype), rounded(value.args[2], dtype))
    if isinstance(value, prim.FloatImm):
        number = float(value.value)
        # TVM has no literal for a narrow infinity.
        return (
            tirx.reinterpret(dtype, tirx.const(INFINITE[dtype] | (number < 0) << 15, "uint16"))
            if isinf(number)
            else tirx.const(number, dtype)
        )
    return value.astype(dtype)
