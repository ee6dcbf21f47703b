"""Functions as an NVIDIA GPU computes them: the library's accurate ones in float32, the card's own approximations beside narrow dtypes.

TVM lowers ``exp`` of float32 to ``__expf`` and ``log`` to ``__logf``, whose relative error grows with the argument.  Where an operator's
tensors are float32 that error would be seen, so functions are called by name here.  Where its tensors are bfloat16 or float16
the result is rounded to 8 or 11 bits, and 2^x and 1/x of the special function unit (2 ulp and 1 ulp, subnormal numbers are
zero; PTX ISA, ex2.approx and rcp.approx) are as good: exp(-inf) = 0, exp(inf) = inf, and NaN stays NaN.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import call_name, dtype_of, prim, rewrite
from tilegen.plan.evaluate import MathRule

LIBRARY = {
    "exp": "expf", "exp2": "exp2f", "log": "logf", "log1p": "log1pf", "log2": "log2f", "tanh": "tanhf", "erf": "erff", "sqrt": "sqrtf",
    "rsqrt": "rsqrtf", "sin": "sinf", "cos": "cosf", "pow": "powf",
}  # fmt: skip
"""Accurate float32 functions of CUDA's library by TVM's names."""

UNIT = """__device__ __forceinline__ float {name}(float x) {{
  float y;
  asm("{instruction}.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}}
"""
"""A function of the special function unit."""


def f32(value: float) -> Any:
    """A float32 literal."""
    return tirx.const(value, "float32")


def call(function: str, *args: Any) -> Any:
    """A float32 function of CUDA's library by name."""
    return tirx.call_pure_extern("float32", function, *args)


def unit(instruction: str, x: Any) -> Any:
    """An approximation by the special function unit: "ex2" (2^x), "lg2" or "rcp" (1/x)."""
    name = f"tilegen_{instruction}"
    return T.cuda.func_call(name, x, source_code=UNIT.format(name=name, instruction=instruction), return_type="float32")


def accurate(expr: Any, bind: Any) -> Any:
    """Every float32 function as the library's."""

    def change(node: Any) -> Any:
        known = call_name(node)
        if dtype_of(node) != "float32":
            return node
        if known == "sigmoid":
            return f32(1) / (f32(1) + call("expf", f32(0) - node.args[0]))
        return call(LIBRARY[known], *node.args) if known in LIBRARY else node

    return rewrite(expr, ir.Call, change)


def approximate(expr: Any, bind: Any) -> Any:
    """exp, log, sigmoid and quotients of float32 by the special function unit, everything else as the library's."""
    base = math.log2(math.e)

    def exponent(x: Any) -> Any:
        """x log2(e); a scaled score less its maximum takes one fused multiply-add."""
        if isinstance(x, prim.Sub) and isinstance(x.a, prim.Select):
            return tirx.Select(x.a.condition, exponent(x.a.true_value - x.b), exponent(x.a.false_value - x.b))
        if isinstance(x, prim.Sub) and isinstance(x.a, prim.Mul) and isinstance(x.a.b, prim.FloatImm):
            return x.a.a * f32(x.a.b.value * base) - x.b * f32(base)
        return x * f32(base)

    exp = lambda x: unit("ex2", exponent(x))  # noqa: E731

    def change(node: Any) -> Any:
        known = call_name(node)
        if dtype_of(node) != "float32":
            return node
        if known == "exp":
            return exp(node.args[0])
        if known == "exp2":
            return unit("ex2", node.args[0])
        if known == "log":
            return unit("lg2", node.args[0]) * f32(math.log(2))
        if known == "sigmoid":
            return unit("rcp", f32(1) + exp(f32(0) - node.args[0]))
        return call(LIBRARY[known], *node.args) if known in LIBRARY else node

    def quotient(node: Any) -> Any:
        return node.a * unit("rcp", node.b) if dtype_of(node) == "float32" else node

    return rewrite(rewrite(expr, ir.Call, change), prim.Div, quotient)


def math_of(dtype: str) -> MathRule:
    """How an operator on tensors of `dtype` computes functions."""
    return approximate if dtype in ("bfloat16", "float16") else accurate
