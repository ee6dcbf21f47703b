"""Scalar functions for the bodies of stages, with TVM's traps closed.

Every function takes expressions and Python numbers; a number takes the dtype of its partner.
`logaddexp` and `softplus` never overflow (TVM's own `te.logaddexp` is log(exp(a) + exp(b))).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import ir, te, tirx
from tvm.runtime import ObjectConvertible

from tilegen.errors import ExpressionError
from tilegen.expression.walkers import Expr, dtype_of

Number = bool | int | float


def const(value: Number, dtype: str) -> Expr:
    """A literal of the given dtype."""
    return tirx.const(value, dtype)


def as_expr(value: Any, like: Any = None) -> Expr:
    """`value` as an expression; a Python number takes the dtype of `like`."""
    if isinstance(value, ObjectConvertible):
        value = value.asobject()
    if isinstance(value, te.Tensor):
        raise ExpressionError(
            f"'{value.op.name}' is a whole tensor where one element is meant; index it: {value.op.name}[i, ...]"
        )
    if isinstance(value, ir.Expr):
        return value
    if isinstance(value, (bool, int, float)):
        if like is not None:
            return const(value, dtype_of(as_expr(like)))
        if isinstance(value, bool):
            return const(value, "bool")
        if isinstance(value, int):
            return const(value, "int32")
        raise ExpressionError(f"the number {value!r} has no dtype here; write const({value!r}, dtype)")
    raise ExpressionError(f"{value!r} is not an expression, a tensor element or a number")


def _float(name: str, value: Any) -> Expr:
    expr = as_expr(value)
    if not dtype_of(expr).startswith(("float", "bfloat")):
        raise ExpressionError(
            f"{name}() got a value of dtype {dtype_of(expr)}, must be floating; cast it first: cast(x, 'float32')"
        )
    return expr


def _pair(name: str, a: Any, b: Any) -> tuple[Expr, Expr]:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        raise ExpressionError(f"{name}() got two plain numbers ({a!r}, {b!r}); one operand must be an expression")
    if isinstance(a, (int, float)):
        return as_expr(a, like=b), as_expr(b)
    a = as_expr(a)
    b = as_expr(b, like=a)
    if dtype_of(a) != dtype_of(b):
        raise ExpressionError(f"{name}() got {dtype_of(a)} and {dtype_of(b)}; cast one: cast(x, {dtype_of(a)!r})")
    return a, b


def exp(x: Any) -> Expr:
    """e**x."""
    return tirx.exp(_float("exp", x))


def exp2(x: Any) -> Expr:
    """2**x."""
    return tirx.exp2(_float("exp2", x))


def log(x: Any) -> Expr:
    """The natural logarithm."""
    return tirx.log(_float("log", x))


def log1p(x: Any) -> Expr:
    """log(1 + x), exact for small x."""
    return tirx.log1p(_float("log1p", x))


def sqrt(x: Any) -> Expr:
    """The square root."""
    return tirx.sqrt(_float("sqrt", x))


def rsqrt(x: Any) -> Expr:
    """1 / sqrt(x)."""
    return tirx.rsqrt(_float("rsqrt", x))


def tanh(x: Any) -> Expr:
    """The hyperbolic tangent."""
    return tirx.tanh(_float("tanh", x))


def sigmoid(x: Any) -> Expr:
    """1 / (1 + exp(-x))."""
    return tirx.sigmoid(_float("sigmoid", x))


def silu(x: Any) -> Expr:
    """x * sigmoid(x)."""
    x = _float("silu", x)
    return x * tirx.sigmoid(x)


def erf(x: Any) -> Expr:
    """The error function."""
    return tirx.erf(_float("erf", x))


def gelu(x: Any) -> Expr:
    """x * Phi(x) with the normal distribution's Phi, the exact form."""
    x = _float("gelu", x)
    return x * (tirx.erf(x * const(math.sqrt(0.5), dtype_of(x))) + 1) * const(0.5, dtype_of(x))


def absolute(x: Any) -> Expr:
    """The absolute value."""
    return tirx.abs(as_expr(x))


def softplus(x: Any) -> Expr:
    """log(1 + exp(x)) without overflow."""
    x = _float("softplus", x)
    return tirx.max(x, const(0, dtype_of(x))) + tirx.log1p(tirx.exp(-tirx.abs(x)))


def logaddexp(a: Any, b: Any) -> Expr:
    """log(exp(a) + exp(b)) without overflow; -inf where both are -inf."""
    a, b = _pair("logaddexp", a, b)
    _float("logaddexp", a)
    high, low = tirx.max(a, b), tirx.min(a, b)
    tie = (a + b) * const(0.5, dtype_of(a)) + const(math.log(2), dtype_of(a))
    return tirx.Select(low == high, tie, high + tirx.log1p(tirx.exp(low - high)))


def power(x: Any, n: Any) -> Expr:
    """x**n; a small integer n is multiplied out, so that negative x is allowed there."""
    if isinstance(n, (int, float)) and float(n).is_integer() and 1 <= n <= 4:
        x = as_expr(x)
        result = x
        for _ in range(int(n) - 1):
            result = result * x
        return result
    x, n = _pair("power", x, n)
    return tirx.power(_float("power", x), n)


def maximum(a: Any, b: Any) -> Expr:
    """The larger of two values."""
    return tirx.max(*_pair("maximum", a, b))


def minimum(a: Any, b: Any) -> Expr:
    """The smaller of two values."""
    return tirx.min(*_pair("minimum", a, b))


def floordiv(a: Any, b: Any) -> Any:
    """a // b rounded towards minus infinity; plain ints give an int."""
    return a // b if isinstance(a, int) and isinstance(b, int) else tirx.floordiv(*_pair("floordiv", a, b))


def floormod(a: Any, b: Any) -> Any:
    """a - b * (a // b); plain ints give an int."""
    return a % b if isinstance(a, int) and isinstance(b, int) else tirx.floormod(*_pair("floormod", a, b))


def ceildiv(a: Any, b: Any) -> Any:
    """a / b rounded up; plain ints give an int."""
    return -(-a // b) if isinstance(a, int) and isinstance(b, int) else tirx.floordiv(a + (b - 1), b)


def cast(x: Any, dtype: str) -> Expr:
    """`x` converted to `dtype`."""
    return as_expr(x).astype(dtype)


def if_then_else(condition: Any, then: Any, otherwise: Any) -> Expr:
    """`then` where the condition holds, else `otherwise`.

    Only the branch taken is evaluated, so the condition may guard a read.
    """
    condition = as_expr(condition)
    if dtype_of(condition) != "bool":
        raise ExpressionError(f"the condition of if_then_else has dtype {dtype_of(condition)}, must be bool; compare it: x != 0")
    return tirx.if_then_else(condition, *_pair("if_then_else", then, otherwise))


def all_of(*conditions: Any) -> Expr:
    """Whether all conditions hold."""
    return tirx.all(*[as_expr(c) for c in conditions])


def any_of(*conditions: Any) -> Expr:
    """Whether any condition holds."""
    return tirx.any(*[as_expr(c) for c in conditions])
