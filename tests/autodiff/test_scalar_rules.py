"""Every intrinsic and operator of a stage's body, against torch autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.autodiff.compare import Case, check
from tests.autodiff.executor import run
from tilegen import expression as ex
from tilegen.autodiff import gradient
from tilegen.expression import compute, const, if_then_else, placeholder
from tilegen.expression.printer import graph_text
from tilegen.expression.walkers import topological

N = 48
SMOOTH = {
    "exp": (ex.exp, torch.exp),
    "exp2": (ex.exp2, torch.exp2),
    "tanh": (ex.tanh, torch.tanh),
    "sigmoid": (ex.sigmoid, torch.sigmoid),
    "silu": (ex.silu, F.silu),
    "gelu": (ex.gelu, F.gelu),
    "erf": (ex.erf, torch.erf),
    "softplus": (ex.softplus, F.softplus),
    "absolute": (ex.absolute, torch.abs),
    "square": (lambda x: ex.power(x, 2), lambda x: x**2),
    "cube": (lambda x: ex.power(x, 3), lambda x: x**3),
    "relu": (lambda x: ex.maximum(x, 0), F.relu),
    "relu2": (lambda x: ex.power(ex.maximum(x, 0), 2), lambda x: F.relu(x) ** 2),
    "clamp": (lambda x: ex.minimum(ex.maximum(x, -1), 1), lambda x: x.clamp(-1, 1)),
    "negated quotient": (lambda x: -x / 3.0, lambda x: -x / 3),
    "quotient": (lambda x: x / (2.0 + x * x), lambda x: x / (2 + x * x)),
    "nested": (lambda x: ex.exp(-(x * x)) / (1.0 + ex.exp(x)), lambda x: torch.exp(-x * x) / (1 + torch.exp(x))),
    "choice": (lambda x: if_then_else(x > 0.0, ex.exp(x), x), lambda x: torch.where(x > 0, x.exp(), x)),
    "rounded": (lambda x: ex.cast(ex.cast(x, "int32"), "float64") * x, lambda x: x.trunc() * x),
    "cast": (lambda x: ex.cast(ex.cast(x, "float32"), "float64"), lambda x: x.float().double()),
}
POSITIVE = {
    "log": (ex.log, torch.log),
    "log1p": (ex.log1p, torch.log1p),
    "sqrt": (ex.sqrt, torch.sqrt),
    "rsqrt": (ex.rsqrt, torch.rsqrt),
    "power 2.5": (lambda x: ex.power(x, 2.5), lambda x: x**2.5),
    "power -1": (lambda x: ex.power(x, -1), lambda x: x**-1),
    "power 7": (lambda x: ex.power(x, 7), lambda x: x**7),
}
BINARY = {
    "maximum": (ex.maximum, torch.maximum),
    "minimum": (ex.minimum, torch.minimum),
    "logaddexp": (ex.logaddexp, torch.logaddexp),
    "power": (lambda a, b: ex.power(ex.absolute(a) + 0.5, b), lambda a, b: (a.abs() + 0.5) ** b),
    "difference over sum": (lambda a, b: (a - b) / (3.0 + a * a + b * b), lambda a, b: (a - b) / (3 + a * a + b * b)),
    "choice by data": (lambda a, b: if_then_else(a > b, a * b, b), lambda a, b: torch.where(a > b, a * b, b)),
}


def unary(fn, reference, values):
    A = placeholder((N,), "float64", "A")
    return Case([A], [compute((N,), lambda i: fn(A[i]), "Y")], reference, {"A": values})


def test_smooth_functions():
    values = torch.linspace(-2.9, 2.8, N, dtype=torch.float64)
    check(*[unary(f, r, values) for f, r in SMOOTH.values()])


def test_functions_of_positive_values():
    values = torch.linspace(0.2, 4.0, N, dtype=torch.float64)
    check(*[unary(f, r, values) for f, r in POSITIVE.values()])


def test_functions_of_two_values():
    cases = []
    for f, r in BINARY.values():
        A, B = placeholder((N,), "float64", "A"), placeholder((N,), "float64", "B")
        cases.append(Case([A, B], [compute((N,), lambda i: f(A[i], B[i]), "Y")], r))
    check(*cases)


def test_ties_of_two_tensors_are_split_as_in_torch():
    values = torch.tensor([1.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    cases = []
    for f, r in ((ex.maximum, torch.maximum), (ex.minimum, torch.minimum), (ex.logaddexp, torch.logaddexp)):
        A, B = placeholder((4,), "float64", "A"), placeholder((4,), "float64", "B")
        Y = compute((4,), lambda i: f(A[i], B[i]), "Y")
        cases.append(Case([A, B], [Y], r, {"A": values, "B": values.clone()}))
    check(*cases)


def test_relu_and_abs_have_no_slope_at_zero_as_in_torch():
    zeros = torch.zeros(4, dtype=torch.float64)
    cases = []
    for f, r in ((lambda x: ex.maximum(x, 0), F.relu), (ex.absolute, torch.abs)):
        A = placeholder((4,), "float64", "A")
        cases.append(Case([A], [compute((4,), lambda i: f(A[i]), "Y")], r, {"A": zeros}))
    check(*cases)


def test_logaddexp_and_softplus_stay_finite_where_the_naive_forms_overflow():
    A, B = placeholder((5,), "float32", "A"), placeholder((5,), "float32", "B")
    Y = compute((5,), lambda i: ex.logaddexp(A[i], B[i]), "Y")
    Z = compute((5,), lambda i: ex.softplus(A[i]), "Z")
    inf = float("inf")
    a, b = torch.tensor([100.0, -100.0, -inf, -inf, 500.0]), torch.tensor([100.5, -100.0, -inf, 1.0, -500.0])
    y, z = run([A, B], [Y, Z], [a, b])
    assert torch.allclose(y, torch.logaddexp(a, b), rtol=1e-6)
    assert torch.allclose(z, F.softplus(a.double()).float(), rtol=1e-6)


def test_a_guard_protects_what_it_hides():
    """The derivative of sqrt at zero is infinite: behind the guard it is not formed, so the result is exactly zero."""
    A, G = placeholder((3,), "float64", "A"), placeholder((3,), "float64", "G")
    Y = compute((3,), lambda i: if_then_else(A[i] > 0.0, ex.sqrt(A[i]), const(0.0, "float64")), "Y")
    (dA,) = gradient([Y], [A], [G])
    values = [torch.tensor([0.0, 4.0, -1.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    assert run([A, G], [dA], values)[0].tolist() == [0.0, 0.25, 0.0]


def test_the_value_of_a_stage_is_used_where_the_derivative_needs_it():
    """exp, tanh and sigmoid are not computed again in the adjoint."""
    A, G = placeholder((3,), "float64", "A"), placeholder((3,), "float64", "G")
    for f, want in ((ex.exp, "G[i0] * Y[i0]"), (ex.tanh, "G[i0] * (1 - Y[i0] * Y[i0])")):
        Y = compute((3,), lambda i: f(A[i]), "Y")
        assert want in graph_text(gradient([Y], [A], [G]), topological([Y]))
