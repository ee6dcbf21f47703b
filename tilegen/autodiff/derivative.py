"""Derivative of one scalar expression: an adjoint is pushed from the root to every tensor read.

Conditions on the way are collected as guards and never multiplied in as 0 or 1: zero times garbage is not
zero.  Adjoints of narrow dtypes are kept in the wide one until all terms are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx

from tilegen.errors import AutodiffError
from tilegen.expression.walkers import (
    WIDE,
    Expr,
    call_name,
    const_int,
    dtype_of,
    has_load,
    is_const,
    is_float,
    is_load,
    prim,
    same,
)

Emit = Callable[[Expr, tuple[Expr, ...], Expr], None]
"""Receives a read, the guards above it, and the adjoint of its value."""


def _sign(x: Expr) -> Expr:
    one, zero = tirx.const(1, dtype_of(x)), tirx.const(0, dtype_of(x))
    return tirx.Select(x > zero, one, tirx.Select(x < zero, -one, zero))


UNARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "exp": lambda x, y: y,
    "exp2": lambda x, y: y * math.log(2),
    "log": lambda x, y: 1 / x,
    "log2": lambda x, y: (1 / math.log(2)) / x,
    "log10": lambda x, y: (1 / math.log(10)) / x,
    "log1p": lambda x, y: 1 / (1 + x),
    "sqrt": lambda x, y: 0.5 / y,
    "rsqrt": lambda x, y: -0.5 * (y * y * y),
    "tanh": lambda x, y: 1 - y * y,
    "sigmoid": lambda x, y: y * (1 - y),
    "sin": lambda x, y: tirx.cos(x),
    "cos": lambda x, y: -tirx.sin(x),
    "erf": lambda x, y: 2 / math.sqrt(math.pi) * tirx.exp(-(x * x)),
    "fabs": lambda x, y: _sign(x),
}
"""d/dx of an intrinsic as a function of x and of y, its value."""

FLAT = ("floor", "ceil", "round", "trunc", "nearbyint")
"""Intrinsics that are constant almost everywhere."""


def wide(expr: Expr) -> Expr:
    """`expr` in the dtype in which adjoints are accumulated."""
    dtype = WIDE.get(dtype_of(expr))
    return expr.astype(dtype) if dtype else expr


def multiply(a: Expr, b: Expr) -> Expr:
    """a * b without factors of one, adjacent literals multiplied."""
    if is_const(a, 1):
        return b
    if is_const(b, 1):
        return a
    if isinstance(b, prim.FloatImm) and isinstance(a, prim.Mul) and isinstance(a.b, prim.FloatImm):
        return multiply(a.a, tirx.const(a.b.value * b.value, dtype_of(b)))
    return a * b


def negate(expr: Expr) -> Expr:
    """The negative of `expr`."""
    return multiply(expr, tirx.const(-1, dtype_of(expr)))


def pull_back(
    expr: Expr, adjoint: Expr, emit: Emit, stage: str, value: Expr | None = None, guards: tuple[Expr, ...] = ()
) -> None:
    """Send the `adjoint` of `expr` to every tensor read in it.

    `value` is an expression equal to `expr` (the stage's own output), used instead of computing it again.
    """
    if not has_load(expr) or not is_float(expr):
        return

    def to(child: Expr, adjoint: Expr, *more: Expr) -> None:
        pull_back(child, adjoint, emit, stage, None, guards + more)

    y = wide(expr if value is None else value)
    name = call_name(expr)
    if is_load(expr):
        emit(expr, guards, adjoint)
    elif isinstance(expr, prim.Add):
        to(expr.a, adjoint)
        to(expr.b, adjoint)
    elif isinstance(expr, prim.Sub):
        to(expr.a, adjoint)
        to(expr.b, negate(adjoint))
    elif isinstance(expr, prim.Mul):
        if same(expr.a, expr.b):
            to(expr.a, multiply(multiply(adjoint, tirx.const(2, dtype_of(adjoint))), wide(expr.a)))
        else:
            to(expr.a, multiply(adjoint, wide(expr.b)))
            to(expr.b, multiply(adjoint, wide(expr.a)))
    elif isinstance(expr, prim.Div):
        to(expr.a, adjoint / wide(expr.b))
        if has_load(expr.b):
            to(expr.b, negate(adjoint * y / wide(expr.b)))
    elif isinstance(expr, (prim.Max, prim.Min)):
        _extremum(expr, adjoint, to)
    elif isinstance(expr, prim.Cast):
        if is_float(expr.value):
            dtype = WIDE.get(dtype_of(expr.value), dtype_of(expr.value))
            to(expr.value, adjoint if dtype == dtype_of(adjoint) else adjoint.astype(dtype))
    elif isinstance(expr, prim.Select) or name == "if_then_else":
        branches = (expr.condition, expr.true_value, expr.false_value) if isinstance(expr, prim.Select) else expr.args
        condition, then, otherwise = branches
        # Where a branch is taken, the stage's value is the branch's value.
        pull_back(then, adjoint, emit, stage, value, (*guards, condition))
        pull_back(otherwise, adjoint, emit, stage, value, (*guards, tirx.Not(condition)))
    elif name == "pow":
        _power(*expr.args, y, adjoint, to)
    elif name in UNARY:
        to(expr.args[0], multiply(adjoint, UNARY[name](wide(expr.args[0]), y)))
    elif name not in FLAT:
        raise AutodiffError(
            f"stage '{stage}': {name or type(expr).__name__} has no derivative rule; write it with + - * /, max, min, "
            f"if_then_else, cast, power, {', '.join(sorted(UNARY))}, or mark the stage with stop_gradient"
        )


def _extremum(expr: Expr, adjoint: Expr, to: Callable[..., None]) -> None:
    """A tie of two tensors is split evenly as in torch; against a constant the constant wins, as in relu."""
    a, b = expr.a, expr.b
    first = a > b if isinstance(expr, prim.Max) else a < b
    if not has_load(a) or not has_load(b):
        to(a, adjoint, first)
        to(b, adjoint, b > a if isinstance(expr, prim.Max) else b < a)
        return
    half, one = tirx.const(0.5, dtype_of(adjoint)), tirx.const(1, dtype_of(adjoint))
    shared = adjoint * tirx.Select(tirx.EQ(a, b), half, one)
    to(a, shared, a >= b if isinstance(expr, prim.Max) else a <= b)
    to(b, shared, b >= a if isinstance(expr, prim.Max) else b <= a)


def _power(x: Expr, n: Expr, y: Expr, adjoint: Expr, to: Callable[..., None]) -> None:
    if has_load(n):
        to(n, adjoint * y * tirx.log(wide(x)), tirx.NE(x, tirx.const(0, dtype_of(x))))
    x, n = wide(x), wide(n)
    exponent = n.value if isinstance(n, prim.FloatImm) else const_int(n)
    if exponent is not None and exponent == int(exponent) and 0 <= exponent <= 8:
        to(x, _scaled_power(adjoint, x, int(exponent)))
    else:
        to(x, adjoint * n * tirx.power(x, n - 1), tirx.NE(n, tirx.const(0, dtype_of(n))))


def _scaled_power(adjoint: Expr, x: Expr, exponent: int) -> Expr:
    """adjoint * exponent * x**(exponent - 1), multiplied out so that negative x is allowed."""
    result = adjoint * tirx.const(exponent, dtype_of(x))
    for _ in range(exponent - 1):
        result = result * x
    return result


def combine(items: Sequence[tuple[tuple[Expr, ...], Expr]]) -> tuple[list[Expr], list[tuple[list[Expr], Expr]]]:
    """Adjoints of one read, each with guards: the guards common to all, and each adjoint with those left over."""
    first = items[0][0]
    common = [g for g in first if all(any(g.same_as(h) for h in guards) for guards, _ in items)]
    rest = [([g for g in guards if not any(g.same_as(h) for h in common)], adjoint) for guards, adjoint in items]
    return common, rest
