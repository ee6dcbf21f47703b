"""Half inputs: adjoints accumulate in float32 and are rounded once, products can take rounded operands."""

from __future__ import annotations

import pytest
import torch
from tvm import te

from tests.autodiff.executor import run
from tilegen.autodiff import gradient, round_operands
from tilegen.autodiff.cost import classify
from tilegen.expression import cast, compute, placeholder, reduce_axis, reduce_sum
from tilegen.expression.printer import graph_text
from tilegen.expression.walkers import topological


def product(m, k, n, dtype="float16"):
    """Y = X W with half operands, accumulated in float32, rounded at the end."""
    X, W, r = placeholder((m, k), dtype, "X"), placeholder((k, n), dtype, "W"), reduce_axis(k, "r")
    wide = compute((m, n), lambda i, j: reduce_sum(cast(X[i, r], "float32") * cast(W[r, j], "float32"), r), "wide")
    return X, W, compute((m, n), lambda i, j: cast(wide[i, j], dtype), "Y")


def test_adjoints_are_wide_until_the_end():
    X, W, Y = product(9, 10, 11)
    G = placeholder((9, 11), "float16", "G")
    result = gradient([Y], [X, W], [G])
    assert [str(t.dtype) for t in result] == ["float16", "float16"]
    inner = [op for op in topological(result) if isinstance(op, te.ComputeOp) and classify(op) == "contraction"]
    assert [str(op.output(0).dtype) for op in inner] == ["float32", "float32"]


def test_a_long_sum_is_rounded_once():
    """4096 ones added up in half precision stop at 2048."""
    X, G = placeholder((16,), "float16", "X"), placeholder((4096, 16), "float16", "G")
    Y = compute((4096, 16), lambda i, c: X[c], "Y")
    (dX,) = gradient([Y], [X], [G])
    got = run([X, G], [dX], [torch.zeros(16).half(), torch.ones(4096, 16).half()])[0]
    assert torch.equal(got, torch.full((16,), 4096.0).half())


def test_gradients_match_float64_within_one_rounding():
    X, W, Y = product(8, 32, 8)
    G = placeholder((8, 8), "float16", "G")
    x, w, g = (
        torch.randn(*s, generator=torch.Generator().manual_seed(k)).half() for k, s in enumerate(((8, 32), (32, 8), (8, 8)))
    )
    dx, dw = run([X, W, G], list(gradient([Y], [X, W], [G])), [x, w, g])
    for got, want in ((dx, g.double() @ w.double().T), (dw, x.double().T @ g.double())):
        assert (got.double() - want).abs().max() <= want.abs().max() * 2**-11


def test_operands_of_products_are_rounded_and_nothing_else():
    X, W, r, s = (
        placeholder((9, 10), "float16", "X"),
        placeholder((10, 11), "float16", "W"),
        reduce_axis(10, "r"),
        reduce_axis(11, "s"),
    )
    S = compute((9, 11), lambda i, j: reduce_sum(cast(X[i, r], "float32") * cast(W[r, j], "float32"), r), "S")
    P = compute((9, 11), lambda i, j: S[i, j] * S[i, j], "P")
    O = compute((9, 10), lambda i, d: reduce_sum(cast(cast(P[i, s], "float16"), "float32") * cast(W[d, s], "float32"), s), "O")
    G = placeholder((9, 10), "float32", "G")
    rounded = round_operands(gradient([O], [X, W], [G]).tensors, "float16")
    stages = graph_text(rounded, topological([O])).splitlines()
    assert "dP[i: 9, j: 11] float32 = sum[d: 10] float32(float16(G[i, d])) * float32(W[d, j])" in stages
    assert any(line.startswith("dS[") and "float16(" not in line for line in stages)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_dtypes_are_left_alone(dtype):
    X, W, Y = product(9, 10, 11, "float32")
    G = placeholder((9, 11), "float32", "G")
    tensors = gradient([Y], [X, W], [G]).tensors
    assert all(a.same_as(b) for a, b in zip(round_operands(tensors, dtype), tensors, strict=True))
