"""The proof that reads are in bounds: what it accepts, and that it finds what is wrong."""

from __future__ import annotations

import pytest
from tvm import tirx

from tilegen.autodiff import graph, unproved_reads
from tilegen.autodiff.term import Term
from tilegen.errors import AutodiffError
from tilegen.expression import (
    all_of,
    any_of,
    ceildiv,
    compute,
    floordiv,
    floormod,
    if_then_else,
    placeholder,
    reduce_axis,
    reduce_sum,
)

n, T = tirx.Var("n", "int32"), tirx.Var("T", "int32")
A = placeholder((10,), "float64", "A")
S = placeholder((T,), "float64", "S")
B = placeholder((n, 4), "float64", "B")
I = placeholder((6,), "int32", "I")
r = reduce_axis(4, "r")


def proved(shape, body):
    return unproved_reads([compute(shape, body, "Y")]) == []


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((10,), lambda i: A[i]),
        ((10,), lambda i: A[9 - i]),
        ((4, 2), lambda i, j: A[i * 2 + j]),
        ((7,), lambda i: reduce_sum(A[i + r], r)),
        ((10,), lambda i: if_then_else(i >= 2, A[i - 2], 0.0)),
        ((20,), lambda i: if_then_else(any_of(i < 5, i >= 15), 0.0, A[i - 5])),
        ((ceildiv(T, 4), 4), lambda c, t: if_then_else(c * 4 + t < T, S[c * 4 + t], 0.0)),
        ((n * 4,), lambda i: B[floordiv(i, 4), floormod(i, 4)]),
        ((T,), lambda i: S[0] + S[T - 1] + S[i]),
        ((3,), lambda i: S[T - 1]),
        ((6,), lambda i: if_then_else(all_of(I[i] >= 0, I[i] < 10), A[I[i]], 0.0)),
        ((6,), lambda i: if_then_else(I[i] >= 0, if_then_else(I[i] < 10, A[I[i]], 0.0), 0.0)),
    ],
)
def test_proved(shape, body):
    assert proved(shape, body)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((11,), lambda i: A[i]),
        ((10,), lambda i: A[i - 1]),
        ((8,), lambda i: reduce_sum(A[i + r], r)),
        ((10,), lambda i: if_then_else(i >= 1, A[i - 2], 0.0)),
        ((10,), lambda i: tirx.Select(i >= 2, A[i - 2], tirx.const(0.0, "float64"))),  # both branches are evaluated
        ((ceildiv(T, 4), 4), lambda c, t: S[c * 4 + t]),
        ((T,), lambda i: S[i + 1]),
        ((6,), lambda i: A[I[i]]),
        ((6,), lambda i: if_then_else(I[i] >= 0, A[I[i]], 0.0)),
        ((5,), lambda i: if_then_else(all_of(I[i] >= 0, I[i] < 10), A[I[i + 1]], 0.0)),
        ((7,), lambda i: if_then_else(all_of(I[i] >= 0, I[i] < 10), A[I[i]], 0.0)),  # I itself is read outside
    ],
)
def test_not_proved(shape, body):
    assert not proved(shape, body)


def test_a_message_has_the_stage_the_read_and_its_conditions():
    Y = compute((10,), lambda i: if_then_else(i >= 1, A[i - 2], 0.0), "Y")
    (found,) = unproved_reads([Y])
    assert str(found) == "stage 'Y' reads A[i - 2] where i >= 1"


def test_an_adjoint_that_lost_its_guards_is_an_internal_error(monkeypatch):
    """Without the guards that the inversion asks for, gradient must refuse its own result."""
    whole = graph.stage_terms

    def unguarded(*arguments):
        def strip(e):
            return e.args[1] if hasattr(e, "op") and str(e.op.name).endswith("if_then_else") else e

        return [(x, Term(t.target, strip(t.body), t.axes, t.scale, [])) for x, t in whole(*arguments)]

    monkeypatch.setattr(graph, "stage_terms", unguarded)
    Y = compute((8,), lambda i: A[i + 2] * A[i + 2], "Y")
    with pytest.raises(AutodiffError, match=r"internal error: .*'dA' reads G\[i0 - 2\]"):
        graph.gradient([Y], [A], [placeholder((8,), "float64", "G")])
