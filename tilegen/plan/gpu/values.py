"""Values of stages in a tile kernel, as one thread computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isinf
from typing import Any

from tvm import ir, te, tirx

from tilegen.expression.walkers import call_name, dtype_of, find, is_load, load_indices, load_tensor, prim, rewrite, substitute
from tilegen.plan import stages
from tilegen.plan.evaluate import Evaluator, MathRule
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
        self.analyzer, self.held, self.inline = analyzer, held, inline
        self.written = set()
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
        def load(call: Any) -> Any:
            return self.element(load_tensor(call), load_indices(call)) if is_load(call) else call

        def select(call: Any) -> Any:
            """A choice between values that are at hand is no branch; where memory is read, the guard must stay one."""
            if call_name(call) != "if_then_else" or find(call, self._is_memory):
                return call
            condition, *sides = call.args
            # What is computed is computed before the choice, or the compiler makes a branch of it again.
            return tirx.Select(condition, *[self._bind("side", self.math(s)) if find(s, is_function) else s for s in sides])

        value = rewrite(rewrite(expr, ir.Call, load), prim.Cast, plain_cast)
        return value if self.inline else rewrite(value, ir.Call, select)

    def _is_memory(self, expr: Any) -> bool:
        return type(expr).__name__ in ("BufferLoad", "TensorLoad") and any(expr.source.same_as(b) for b in self.buffers.values())

    def _bind(self, name: str, value: Any) -> Any:
        return value if self.inline else super()._bind(name, value)


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
        return tirx.reinterpret(dtype, tirx.const(INFINITE[dtype] | (number < 0) << 15, "uint16")) if isinf(number) else tirx.const(number, dtype)
    return value.astype(dtype)
