"""Transcendental functions as arithmetic that vectorises, for targets whose math library is scalar.

LLVM turns ``exp`` of a vector into one library call an element.  The float32 functions here are polynomials
after Cephes (Moshier; expf, logf), accurate to 3 ulp, and keep the special values: exp(-inf) = 0,
exp(inf) = inf, log(0) = -inf, log of a negative number is NaN, NaN stays NaN.  float64 keeps the library's functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import ir, tirx

from tilegen.expression.walkers import call_name, rewrite
from tilegen.plan.guards import opened

LOG2E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
Expr = Any
Bind = Callable[[str, Expr], Expr]


def f32(value: float) -> Expr:
    """A float32 literal."""
    return tirx.const(value, "float32")


def horner(coefficients: tuple[float, ...], x: Expr) -> Expr:
    """The polynomial whose highest coefficient comes first."""
    value = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + f32(coefficient)
    return value


def power_of_two(n: Expr) -> Expr:
    """2^n for an integer n between -126 and 127."""
    return tirx.reinterpret("float32", (n + 127) << 23)


class Functions:
    """The functions; `bind` gives a name to a value that is used more than once (TVM's own let expressions break its simplifier)."""

    def __init__(self, bind: Bind):
        self.let = lambda name, value, body: body(bind(name, value))
        self.by_name = {"exp": self.exp, "exp2": self.exp2, "log": self.log, "log1p": self.log1p, "sigmoid": self.sigmoid, "tanh": self.tanh}

    def exp(self, x: Expr) -> Expr:
        """exp(x) = 2^n exp(r), the power in two halves so that subnormal and infinite results come out right."""
        floor_half = lambda z: tirx.floor(z * f32(LOG2E) + f32(0.5))  # noqa: E731

        def scaled(z: Expr) -> Expr:
            return self.let("n", floor_half(z), lambda n: self.let("r", (z - n * f32(LN2_HIGH)) - n * f32(LN2_LOW), lambda r: finish(n, r)))

        def finish(n: Expr, r: Expr) -> Expr:
            polynomial = horner(EXP, r) * r * r + r + f32(1)
            half = lambda i: polynomial * power_of_two(i >> 1) * power_of_two(i - (i >> 1))  # noqa: E731
            return self.let("i", n.astype("int32"), half)

        # Comparisons are written so that NaN fails them and passes through.
        capped = lambda z: tirx.Select(z > f32(89), f32(89), tirx.Select(z < f32(-104), f32(-104), z))  # noqa: E731
        return self.let("x", x, lambda z: self.let("z", capped(z), scaled))

    def log(self, x: Expr) -> Expr:
        """log(x) = e log(2) + log(m) with m between sqrt(1/2) and sqrt(2)."""

        def finish(z: Expr, e: Expr, m: Expr) -> Expr:
            r = m - f32(1)
            polynomial = lambda y: y - f32(0.5) * y * y + y * y * y * horner(LOG, y)  # noqa: E731
            value = self.let("y", r, lambda y: polynomial(y) + e * f32(LN2_LOW)) + e * f32(LN2_HIGH)
            special = tirx.Select(z == f32(0), f32(float("-inf")), f32(float("nan")))
            finite = tirx.Select(z == f32(float("inf")), z, value)
            return tirx.Select(z > f32(0), finite, special)

        def split(z: Expr) -> Expr:
            bits = tirx.reinterpret("int32", z)
            mantissa = tirx.reinterpret("float32", (bits & 0x007FFFFF) | 0x3F000000)  # in [1/2, 1)
            exponent = ((bits >> 23) - 126).astype("float32")
            small = lambda m: m < f32(0.70710678)  # noqa: E731
            return self.let(
                "m", mantissa, lambda m: finish(z, tirx.Select(small(m), exponent - f32(1), exponent), tirx.Select(small(m), m + m, m))
            )

        return self.let("x", x, split)

    def log1p(self, x: Expr) -> Expr:
        """log(1 + x) with the rounding of 1 + x made good."""
        corrected = lambda y, u: self.log(u) - ((u - f32(1)) - y) / u  # noqa: E731
        return self.let("y", x, lambda y: self.let("u", y + f32(1), lambda u: tirx.Select(u == f32(float("inf")), u, corrected(y, u))))

    def sigmoid(self, x: Expr) -> Expr:
        """1 / (1 + exp(-x))."""
        return f32(1) / (f32(1) + self.exp(f32(0) - x))

    def tanh(self, x: Expr) -> Expr:
        """tanh(x), by its series near zero where 1 - 2 / (exp(2x) + 1) cancels."""
        terms = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
        series = lambda y: y + y * y * y * horner(terms, y * y)  # noqa: E731
        far = lambda y: f32(1) - f32(2) / (self.exp(y + y) + f32(1))  # noqa: E731
        near = lambda y: tirx.Select(y < f32(0), f32(0) - y, y) < f32(0.625)  # noqa: E731
        return self.let("y", x, lambda y: tirx.Select(near(y), series(y), far(y)))

    def exp2(self, x: Expr) -> Expr:
        """2^x."""
        return self.exp(x * f32(1 / LOG2E))

    def has(self, expr: Expr) -> bool:
        """Whether `expr` is a call of one of these functions."""
        return call_name(expr) in self.by_name and str(expr.ty.dtype) == "float32"


def vectorisable(expr: Expr, bind: Bind) -> Expr:
    """`expr` with the float32 functions above written out, what guards protect included."""
    functions = Functions(bind)
    return written_out(opened(expr, bind, functions.has), functions)


def written_out(expr: Expr, functions: Functions) -> Expr:
    """Every call of a float32 function replaced."""

    return rewrite(expr, ir.Call, lambda call: functions.by_name[call_name(call)](call.args[0]) if functions.has(call) else call)
