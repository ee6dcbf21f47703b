"""What cannot be differentiated names the stage, the index expression and what to write instead."""

from __future__ import annotations

import pytest
from tvm import te, tirx

from tilegen.autodiff import gradient, require_proved
from tilegen.errors import AutodiffError, ExpressionError
from tilegen.expression import compute, const, exp, floordiv, if_then_else, maximum, placeholder, reduce_axis, reduce_sum

A = placeholder((4, 5), "float64", "A")
G = placeholder((4,), "float64", "G")


def row(body, n=4):
    return compute((n,), body, "Y")


def grad(output, x=A):
    return gradient([output], [x], [placeholder(output.shape, "float64", "G")])


def test_unknown_intrinsic():
    with pytest.raises(AutodiffError, match=r"stage 'Y': atan has no derivative rule; write it with .*exp.*stop_gradient"):
        grad(row(lambda i: te.atan(A[i, 0])))


def test_product_reduction():
    r = reduce_axis(5, "r")
    prod = te.comm_reducer(lambda x, y: x * y, lambda t: tirx.const(1, t), name="prod")
    with pytest.raises(AutodiffError, match="stage 'Y': a reduction by Mul has no adjoint; use sum, max or min"):
        grad(te.compute((4,), lambda i: prod(A[i, r], axis=r), name="Y"))


def test_reduction_of_several_values():
    r = reduce_axis(5, "r")
    larger = lambda x, y: tirx.Select(x[1] >= y[1], x[1], y[1])
    pair = te.comm_reducer(
        lambda x, y: (tirx.Select(x[1] >= y[1], x[0], y[0]), larger(x, y)),
        lambda t0, t1: (tirx.const(-1, t0), te.min_value(t1)),
        name="argmax",
    )
    position = te.compute((4, 5), lambda i, j: j, name="position")
    outputs = te.compute((4,), lambda i: pair((position[i, r], A[i, r]), axis=r), name="best")
    with pytest.raises(AutodiffError, match="stage 'best': a reduction of several values at once has no adjoint"):
        gradient([outputs[1]], [A], [G])


def test_ignored_where_of_a_reduction():
    r = reduce_axis(5, "r")
    with pytest.raises(ExpressionError, match="stage 'Y': where= of a reduction is ignored by TVM's lowering; write"):
        grad(te.compute((4,), lambda i: te.sum(A[i, r], axis=r, where=r > 2), name="Y"))


def test_index_that_cannot_be_inverted_within_the_limit():
    B = placeholder((40,), "float64", "B")
    with pytest.raises(AutodiffError, match=r"stage 'Y' reads B\[max\(i - 2, 0\)\].*costs 40 times.*block coordinates"):
        grad(row(lambda i: B[maximum(i - 2, 0)] * 1.0, 40), B)


def test_the_limit_can_be_raised():
    B = placeholder((40,), "float64", "B")
    Y = row(lambda i: B[maximum(i - 2, 0)] * 1.0, 40)
    (note,) = gradient([Y], [B], [placeholder((40,), "float64", "G")], limit=100).notes
    assert note.masked
    assert note.waste == 40


def test_quotient_of_several_variables_over_a_symbolic_range():
    n = tirx.Var("n", "int32")
    S = placeholder((n,), "float64", "S")
    Y = compute((n, 4), lambda i, j: if_then_else(floordiv(i * 3 + j, 8) < n, S[floordiv(i * 3 + j, 8)], 0.0), "Y")
    with pytest.raises(AutodiffError, match=r"reads S\[\(i \* 3 \+ j\) // 8\].*symbolic range; write it in block coordinates"):
        grad(Y, S)


def test_integer_input():
    I = placeholder((4,), "int32", "I")
    with pytest.raises(AutodiffError, match="input 'I' is int32 and has no gradient; leave it out of inputs"):
        gradient([row(lambda i: A[i, 0] * I[i].astype("float64"))], [I], [G])


def test_cotangents_are_checked():
    Y = row(lambda i: A[i, 0] * 1.0)
    with pytest.raises(AutodiffError, match="out_grads has 0 tensors, must have one for each of 1 outputs"):
        gradient([Y], [A], [])
    with pytest.raises(AutodiffError, match=r"the cotangent 'W' is float64 \[5\], must be float64 \[4\] as the output 'Y'"):
        gradient([Y], [A], [placeholder((5,), "float64", "W")])


def test_a_read_of_the_forward_out_of_bounds():
    B = placeholder((5,), "float64", "B")
    Y = row(lambda i: A[i, 0] * B[i + 2])
    with pytest.raises(ExpressionError, match=r"stage 'Y' reads B\[i \+ 2\].*not provably inside.*guard it: if_then_else"):
        grad(Y)
    with pytest.raises(ExpressionError, match=r"stage 'Y' reads B\[i \+ 2\]"):
        require_proved([Y])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: compute((), lambda: A[0, 0], "Y"), r"'Y' has no axes, which TVM cannot handle; give it the shape \(1,\)"),
        (lambda: row(lambda i: 1.0), r"stage 'Y': the body is the plain number 1.0; write const\(1.0, dtype\)"),
        (lambda: compute((4, 5), lambda i: A[i, 0], "Y"), r"the shape has 2 axes, the body takes 1 indices \(i\)"),
        (lambda: row(lambda i: reduce_sum(A[i, R], R) * 2.0), "a reduction is part of a larger expression; make it a stage"),
        (lambda: row(lambda i: reduce_sum(A[i, 0], 3)), "axis must be made by reduce_axis"),
        (lambda: row(lambda i: exp(A)), r"'A' is a whole tensor where one element is meant; index it: A\[i, ...\]"),
        (lambda: row(lambda i: exp(i)), r"exp\(\) got a value of dtype int32, must be floating; cast it first"),
        (lambda: row(lambda i: maximum(A[i, 0], const(1, "float32"))), r"maximum\(\) got float64 and float32; cast one"),
        (lambda: row(lambda i: if_then_else(i, A[i, 0], 0.0)), "the condition of if_then_else has dtype int32, must be bool"),
        (lambda: maximum(1, 2), r"maximum\(\) got two plain numbers \(1, 2\); one operand must be an expression"),
    ],
)
def test_expressions_that_say_something_else_than_meant(build, message):
    with pytest.raises(ExpressionError, match=message):
        build()


R = reduce_axis(5, "r")
