"""What an adjoint is made of: the same patterns as its forward, few more operations, readable text."""

from __future__ import annotations

import pytest
from tvm import te

from tests.autodiff import forwards
from tilegen.autodiff import gradient, unproved_reads
from tilegen.autodiff.cost import adjoint_flops, classify, flops, structure
from tilegen.expression import compute, if_then_else, placeholder, reduce_axis, reduce_sum
from tilegen.expression.printer import graph_text
from tilegen.expression.walkers import topological

GRAPHS = {
    "linear_attention": forwards.linear_attention,
    "decayed_linear_attention": lambda: forwards.linear_attention(decayed=True),
    "softmax_attention": forwards.softmax_attention,
    "moments": forwards.moments,
    "short_convolution": forwards.short_convolution,
    "far_field": forwards.far_field,
    "log_scan": forwards.log_scan,
    "decayed_scan": forwards.decayed_scan,
}
LIMIT = {
    "linear_attention": 2.1,
    "decayed_linear_attention": 2.1,
    "softmax_attention": 2.1,
    "short_convolution": 2.1,
    "far_field": 2.1,
    "moments": 3,
    "log_scan": 3,
    "decayed_scan": 3,
}


def differentiated(name):
    inputs, outputs = GRAPHS[name]()
    cotangents = [placeholder(y.shape, str(y.dtype), f"grad_{y.op.name}") for y in outputs]
    return outputs, gradient(outputs, inputs, cotangents)


@pytest.mark.parametrize("name", GRAPHS)
def test_adjoint_text(name, golden):
    outputs, adjoint = differentiated(name)
    forward = graph_text(outputs)
    backward = graph_text(adjoint, topological(outputs))
    golden(f"autodiff/{name}.txt", f"# forward\n{forward}\n# adjoint\n{backward}")


@pytest.mark.parametrize("name", GRAPHS)
def test_backward_flops(name):
    outputs, adjoint = differentiated(name)
    assert adjoint_flops(adjoint, outputs).own <= LIMIT[name] * flops(outputs)


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_enumerated_twice_and_all_reads_are_proved(name):
    outputs, adjoint = differentiated(name)
    assert all(note.waste == 1 and not note.masked for note in adjoint.notes)
    assert unproved_reads([*outputs, *adjoint]) == []


def test_products_stay_plain_products():
    """Twice as many as in the forward, none with a mask or a factor inside."""
    outputs, adjoint = differentiated("linear_attention")
    assert structure(outputs)["contraction"] == 4
    assert structure(adjoint, topological(outputs)) == {"contraction": 8, "map": 4, "scan": 1}


@pytest.mark.parametrize(
    ("forward", "small", "large"),
    [
        (forwards.linear_attention, {"n": 3, "C": 2, "D": 3, "E": 4}, {}),
        (forwards.softmax_attention, {"n": 4, "m": 3, "D": 2, "E": 5}, {}),
        (forwards.far_field, {"n": 8, "m": 2, "p": 2, "D": 2}, {"p": 16}),
    ],
    ids=["linear_attention", "softmax_attention", "far_field"],
)
def test_small_products_stay_products(forward, small, large):
    """Unrolled, a product would compute each element of its operands anew at every use."""

    def products(sizes):
        inputs, outputs = forward(**sizes)
        adjoint = gradient(outputs, inputs, [placeholder(y.shape, str(y.dtype), f"grad_{y.op.name}") for y in outputs])
        return structure(adjoint, topological(outputs))["contraction"]

    assert products(small) == products(large)


def test_the_softmax_adjoint_is_that_of_flash_attention():
    outputs, adjoint = differentiated("softmax_attention")
    assert structure(adjoint, topological(outputs)) == {"contraction": 4, "product of 2": 1, "map": 4}


def test_guards_of_a_product_move_onto_its_operands():
    """S[I] = q[I] k[I-1]^T for I > 0: dk is a plain product of padded operands, since either read may be outside."""
    n, C, D = 6, 16, 16
    q, k, x = placeholder((n, C, D), "float64", "q"), placeholder((n, C, D), "float64", "k"), reduce_axis(D, "x")

    def body(I, a, j):
        return reduce_sum(if_then_else(I > 0, q[I, a, x] * k[I - 1, j, x], 0.0), x)

    S = compute((n, C, C), body, "S")
    dq, dk = gradient([S], [q, k], [placeholder((n, C, C), "float64", "G")])
    assert classify(dq.op) == classify(dk.op) == "contraction"
    lines = graph_text([dk], topological([S])).splitlines()
    assert lines[0] == "G_pad[i0: 6, i1: 16, a: 16] float64 = if(i0 < 5, G[i0 + 1, a, i1], 0)"
    assert lines[1] == "q_pad[i0: 6, i2: 16, a: 16] float64 = if(i0 < 5, q[i0 + 1, a, i2], 0)"


def test_a_window_is_not_unfolded_by_padding():
    """The operands of a long convolution read overlapping windows; padding them would copy each element K times."""
    x, w, r = placeholder((64, 8), "float64", "x"), placeholder((32, 8), "float64", "w"), reduce_axis(32, "r")
    y = compute((64, 8), lambda t, c: reduce_sum(if_then_else(t - r >= 0, x[t - r, c] * w[r, c], 0.0), r), "y")
    adjoint = gradient([y], [x, w], [placeholder((64, 8), "float64", "G")])
    assert not any(op.name.endswith("_pad") for op in topological(adjoint))


def test_small_reductions_become_expressions():
    x, w, r = placeholder((64, 8), "float64", "x"), placeholder((4, 8), "float64", "w"), reduce_axis(4, "r")
    y = compute((64, 8), lambda t, c: reduce_sum(if_then_else(t - r >= 0, x[t - r, c] * w[r, c], 0.0), r), "y")
    dx, dw = gradient([y], [x, w], [placeholder((64, 8), "float64", "G")])
    assert classify(dx.op) == "map"
    assert classify(dw.op) == "masked product of 2"


def test_factors_leave_the_sum():
    x, s, r = placeholder((16, 32), "float64", "x"), placeholder((16,), "float64", "s"), reduce_axis(32, "r")
    y = compute((16, 32), lambda i, j: x[i, j] * s[i] * -3.0, "y")
    z = compute((16,), lambda i: reduce_sum(y[i, r] * y[i, r], r), "z")
    adjoint = gradient([z], [s], [placeholder((16,), "float64", "G")])
    (inner,) = [op for op in topological(adjoint) if isinstance(op, te.ComputeOp) and op.name == "ds_0"]
    assert "-3" not in graph_text([inner.output(0)]).splitlines()[-1]


def test_no_stage_is_dead():
    outputs, adjoint = differentiated("softmax_attention")
    reached = topological([*outputs, *adjoint])
    assert len({op.name for op in reached if isinstance(op, te.ComputeOp)}) == sum(isinstance(op, te.ComputeOp) for op in reached)


def test_symbolic_sizes_are_counted_by_name():
    from tvm import tirx

    n, r = tirx.Var("n", "int32"), reduce_axis(8, "r")
    x = placeholder((n, 8), "float64", "x")
    y = compute((n,), lambda i: reduce_sum(x[i, r] * x[i, r], r), "y")
    assert flops([y], {"n": 5}) == 5 * 8 * 2
