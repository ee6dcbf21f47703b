"""Functions as an NVIDIA GPU computes them: the library's accurate ones in float32, the card's own approximations beside narrow dtypes.

TVM lowers ``exp`` of float32 to ``__expf`` and ``log`` to ``__logf``, whose relative error grows with the argument.  Where an operator's
tensors are float32 that error would be seen, so functions are called by name here.  Where its tensors are bfloat16 or float16
the result is rounded to 8 or 11 bits, and 2^x of the special function unit (2 ulp; PTX ISA, ex2.approx) is as good: exp(-inf) = 0,
exp(inf) = inf, and NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx

from tilegen.expression.walkers import call_name, prim, rewrite
from tilegen.plan.evaluate import MathRule

LIBRARY = {
    "exp": "expf", "exp2": "exp2f", "log": "logf", "log1p": "log1pf", "log2": "log2f", "tanh": "tanhf", "erf": "erff", "sqrt": "sqrtf",
    "rsqrt": "rsqrtf", "sin": "sinf", "cos": "cosf", "pow": "powf",
}  # fmt: skip
"""Accurate float32 functions of CUDA's library by TVM's names."""

FAST = {"exp": "__expf", "log": "__logf"}
"""Approximations by the special function unit."""


def f32(value: float) -> Any:
    """A float32 literal."""
    return tirx.const(value, "float32")


def call(function: str, *args: Any) -> Any:
    """A float32 function of CUDA by name."""
    return tirx.call_pure_extern("float32", function, *args)


def accurate(expr: Any, bind: Any) -> Any:
    """Every float32 function as the library's."""

    def change(node: Any) -> Any:
        known = call_name(node)
        if str(node.ty.dtype) != "float32":
            return node
        if known == "sigmoid":
            return f32(1) / (f32(1) + call("expf", f32(0) - node.args[0]))
        return call(LIBRARY[known], *node.args) if known in LIBRARY else node

    return rewrite(expr, ir.Call, change)


def approximate(expr: Any, bind: Any) -> Any:
    """exp, log, sigmoid and quotients of float32 by the special function unit, everything else as the library's."""

    def change(node: Any) -> Any:
        known = call_name(node)
        if str(node.ty.dtype) != "float32":
            return node
        if known == "sigmoid":
            return call("__fdividef", f32(1), f32(1) + call("__expf", f32(0) - node.args[0]))
        if known in FAST:
            return call(FAST[known], *node.args)
        return call(LIBRARY[known], *node.args) if known in LIBRARY else node

    def quotient(node: Any) -> Any:
        return call("__fdividef", node.a, node.b) if str(node.ty.dtype) == "float32" else node

    return rewrite(rewrite(expr, ir.Call, change), prim.Div, quotient)


def math_of(dtype: str) -> MathRule:
    """How an operator on tensors of `dtype` computes functions."""
    return approximate if dtype in ("bfloat16", "float16") else accurate
