"""Sum, max and min over one and several axes, several outputs, several uses, inputs without gradient."""

from __future__ import annotations

import pytest
import torch

from tests.autodiff.compare import Case, check
from tests.autodiff.executor import run
from tilegen.autodiff import gradient
from tilegen.expression import (
    compute,
    exp,
    if_then_else,
    placeholder,
    reduce_axis,
    reduce_max,
    reduce_min,
    reduce_sum,
    stop_gradient,
)
from tilegen.expression.printer import graph_text
from tilegen.expression.walkers import topological


def tensor(name, *shape, dtype="float64"):
    return placeholder(shape, dtype, name)


@pytest.mark.parametrize(("reduce", "reference"), [(reduce_max, torch.amax), (reduce_min, torch.amin)])
def test_extremum_goes_where_it_is_attained_and_ties_share_it(reduce, reference):
    A, r, s = tensor("A", 4, 9), reduce_axis(9, "r"), reduce_axis(4, "s")
    rows = compute((4,), lambda i: reduce(A[i, r], r), "rows")
    whole = compute((2,), lambda i: reduce(A[s, r] * A[s, r], [s, r]), "whole")
    ties = torch.tensor([[1.0, 1, 0, 0, 1, 0, 0, 0, 0], [2.0] * 9, [3.0, 0, 0, 0, 0, 0, 0, 0, 3], [0.5] * 9], dtype=torch.float64)
    check(
        Case([A], [rows], lambda a: reference(a, 1)),
        Case([A], [rows], lambda a: reference(a, 1), {"A": ties}),
        Case([A], [whole], lambda a: reference(a * a, (0, 1))[None].expand(2)),
    )


def test_sums_over_several_axes():
    A, B, r, s = tensor("A", 3, 5, 12), tensor("B", 12, 5), reduce_axis(5, "r"), reduce_axis(12, "s")
    Y = compute((3,), lambda i: reduce_sum(A[i, r, s] * B[s, r], [r, s]), "Y")
    check(Case([A, B], [Y], lambda a, b: torch.einsum("irs,sr->i", a, b)))


def test_matrix_product_and_its_transposes():
    A, B, r = tensor("A", 2, 11, 12), tensor("B", 2, 12, 13), reduce_axis(12, "r")
    Y = compute((2, 11, 13), lambda b, i, j: reduce_sum(A[b, i, r] * B[b, r, j], r), "Y")
    (p,) = check(Case([A, B], [Y], torch.bmm))
    assert graph_text(p.adjoint, topological([Y])) == (
        "dA[i0: 2, i1: 11, i2: 12] float64 = sum[j: 13] grad_Y_0[i0, i1, j] * B[i0, i2, j]\n"
        "dB[i0: 2, i1: 12, i2: 13] float64 = sum[i: 11] grad_Y_0[i0, i, i2] * A[i0, i, i1]\n"
    )


def test_several_outputs_and_several_uses():
    A, r = tensor("A", 4, 6), reduce_axis(6, "r")
    E = compute((4, 6), lambda i, j: exp(A[i, j]) * A[i, j], "E")
    S = compute((4,), lambda i: reduce_sum(E[i, r], r), "S")
    Y = compute((4, 6), lambda i, j: E[i, j] / (S[i] * S[i] + 1.0), "Y")

    def reference(a):
        e = a.exp() * a
        return e / (e.sum(1)[:, None] ** 2 + 1), e.sum(1), e

    check(Case([A], [Y, S, E], reference))


def test_an_output_that_is_an_input_and_one_given_twice():
    A = tensor("A", 5)
    Y = compute((5,), lambda i: A[i] * 2.0, "Y")
    G = [tensor(f"G{k}", 5) for k in range(3)]
    (dA,) = gradient([A, Y, Y], [A], G)
    g = [torch.randn(5, dtype=torch.float64) for _ in G]
    assert torch.allclose(run(G, [dA], g)[0], g[0] + 2 * g[1] + 2 * g[2])


def test_an_undifferentiated_output_and_an_unused_input():
    A, B = tensor("A", 5), tensor("B", 5)
    Y, Z = compute((5,), lambda i: A[i] * 2.0, "Y"), compute((5,), lambda i: B[i] * A[i], "Z")
    G = tensor("G", 5)
    dA, dB = gradient([Y, Z], [A, B], [G, None])
    g = torch.randn(5, dtype=torch.float64)
    a, b = run([G], [dA, dB], [g])
    assert torch.equal(a, 2 * g)
    assert torch.equal(b, torch.zeros_like(g))


def test_integer_and_boolean_inputs_are_constants():
    A, I, M = tensor("A", 6), tensor("I", 6, dtype="int32"), tensor("M", 6, dtype="int32")
    Y = compute((6,), lambda i: if_then_else(M[i] != 0, A[i] * I[i].astype("float64"), 0.0), "Y")
    numbers = torch.arange(6, dtype=torch.int32)
    case = Case([A, I, M], [Y], lambda a, i, m: torch.where(m != 0, a * i, 0.0), {"I": numbers, "M": numbers % 2})
    check(case)


def test_a_stopped_stage_is_a_constant():
    A, r = tensor("A", 4, 6), reduce_axis(6, "r")
    M = stop_gradient(compute((4,), lambda i: reduce_max(A[i, r], r), "M"))
    P = compute((4, 6), lambda i, j: exp(A[i, j] - M[i]), "P")
    check(Case([A], [P], lambda a: torch.exp(a - a.amax(1, keepdim=True).detach())))


def test_a_stopped_argument_keeps_its_other_uses():
    A = tensor("A", 6)
    K = stop_gradient(A)
    check(Case([A], [compute((6,), lambda i: A[i] * K[i], "Y")], lambda a: a * a.detach()))


def test_softmax_with_marked_and_unmarked_maximum_agree_with_torch():
    cases = []
    for mark in (stop_gradient, lambda t: t):
        A, V, r, s = tensor("A", 4, 10), tensor("V", 10, 9), reduce_axis(10, "r"), reduce_axis(10, "s")
        M = mark(compute((4,), lambda i: reduce_max(A[i, r], r), "M"))
        P = compute((4, 10), lambda i, j: exp(A[i, j] - M[i]), "P")
        D = compute((4,), lambda i: reduce_sum(P[i, r], r), "D")
        N = compute((4, 9), lambda i, e: reduce_sum(P[i, s] * V[s, e], s), "N")
        cases.append(Case([A, V], [compute((4, 9), lambda i, e: N[i, e] / D[i], "O")], lambda a, v: a.softmax(1) @ v))
    marked, unmarked = check(*cases)
    assert len(topological(marked.adjoint)) < len(topological(unmarked.adjoint))


def test_second_derivatives():
    A, G, H = tensor("A", 4, 5), tensor("G", 4, 5), tensor("H", 4, 5)
    Y = compute((4, 5), lambda i, j: exp(A[i, j]) * A[i, j], "Y")
    (first,) = gradient([Y], [A], [G])
    dA, dG = gradient([first], [A, G], [H])
    a, g = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    h = torch.randn(4, 5, dtype=torch.float64)
    (once,) = torch.autograd.grad((a.exp() * a * g).sum(), a, create_graph=True)
    wanted = torch.autograd.grad((once * h).sum(), (a, g))
    for got, want in zip(run([A, G, H], [dA, dG], [a.detach(), g.detach(), h]), wanted, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-12)
