"""Float32 sums inside a tile are trees: what serial rounding would spoil stays exact, and contractions stay chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.plan.graphs import Instance, run
from tilegen import mechanisms
from tilegen.expression import ceildiv, compute, const, exp, floordiv, floormod, if_then_else, reduce_axis, reduce_sum
from tilegen.mechanisms import ArgSpec, Mechanism
from tilegen.ops.short_long_conv import BLOCKS, BlockConfig
from tilegen.plan.plan import plan
from tilegen.plan.sums import is_row_sum
from tilegen.plan.tiles import TileKernel


@dataclass(frozen=True)
class Rows:
    chunk: int = 4
    function: str = "product"


def row_sums(config, dims, x, w):
    """y[b, t] = sum over n of x[b, t, n] w[n], or of exp(x[b, t, n] - w[n]), in chunks of rows."""
    C, zero, n = config.chunk, const(0, dims.acc), reduce_axis(dims.N, "n")
    shape = (dims.B, ceildiv(dims.T, C), C, dims.N)
    padded = compute(shape, lambda b, c, i, n: if_then_else(c * C + i < dims.T, x[b, c * C + i, n], zero), name="X")
    term = {"product": lambda a, b: a * b, "exp": lambda a, b: exp(a - b)}[config.function]
    s = compute(shape[:3], lambda b, c, i: reduce_sum(term(padded[b, c, i, n.var], w[n.var]), n), name="s")
    return (compute((dims.B, dims.T), lambda b, t: s[b, floordiv(t, C), floormod(t, C)], name="y"),)


MECHANISM = Mechanism(
    name="row_sums_of_the_tests",
    config=Rows,
    symbolic=("B", "T"),
    static=("N",),
    inputs=lambda config: (ArgSpec("x", ("B", "T", "N")), ArgSpec("w", ("N",))),
    outputs=lambda config: (ArgSpec("y", ("B", "T")),),
    expression=row_sums,
    reference=lambda config, x, w: ((x * w).sum(-1),),
    representative={"B": 2, "T": 8},
)


def summed(x: np.ndarray, w: np.ndarray, **options) -> np.ndarray:
    instance = Instance(MECHANISM, Rows(**options), {"N": len(w)}, str(x.dtype))
    function = plan(instance, backward=False).functions["forward"]
    return run(instance, function, {"x": x, "w": w}, dict(zip("BT", x.shape, strict=False)))["y"]


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("terms", [3, 16, 64, 1024])
def test_equal_terms_add_up_without_error(terms: int, chunk: int) -> None:
    """A serial sum of 1024 float32 numbers 1/3 is off by 1e-5 of its value."""
    x = np.full((2, 5, terms), 1 / 3, "float32")
    y = summed(x, np.ones(terms, "float32"), chunk=chunk)
    exact = terms * x.astype("float64")[0, 0, 0]
    assert (y == exact).all() if terms & (terms - 1) == 0 else np.allclose(y, exact, rtol=6e-8)


@pytest.mark.parametrize("terms", [5, 17, 37, 300])
@pytest.mark.parametrize("function", ["product", "exp"])
def test_any_number_of_terms(terms: int, function: str) -> None:
    rng = np.random.default_rng(terms)
    x, w = rng.standard_normal((2, 7, terms)).astype("float32"), rng.standard_normal(terms).astype("float32")
    wide = x.astype("float64"), w.astype("float64")
    exact = wide[0] * wide[1] if function == "product" else np.exp(wide[0] - wide[1])
    scale = np.abs(exact).sum(-1)
    assert (np.abs(summed(x, w, function=function) - exact.sum(-1)) <= 4e-7 * scale).all()


def test_a_contraction_is_no_row_sum() -> None:
    from tests.plan.graphs import chunked

    (kernel,) = plan(chunked("float32", 16, D=16, E=16), backward=False).functions["forward"].kernels
    assert isinstance(kernel, TileKernel)
    assert not any(is_row_sum(tensor) for tensor in kernel.locals)


@dataclass(frozen=True)
class Columns:
    pass


def column_sums(config, dims, x, y):
    """z[c] = sum over b and t of x[b, t, c] y[b, t]: the gradient of a weight, most often."""
    b, t = reduce_axis(dims.B, "b"), reduce_axis(dims.T, "t")
    return (compute((dims.C,), lambda c: reduce_sum(x[b.var, t.var, c] * y[b.var, t.var], [b, t]), name="z"),)


COLUMNS = Mechanism(
    name="column_sums_of_the_tests",
    config=Columns,
    symbolic=("B", "T"),
    static=("C",),
    inputs=lambda config: (ArgSpec("x", ("B", "T", "C")), ArgSpec("y", ("B", "T"))),
    outputs=lambda config: (ArgSpec("z", ("C",)),),
    expression=column_sums,
    reference=lambda config, x, y: ((x * y[..., None]).sum((0, 1)),),
    representative={"B": 2, "T": 8},
)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 50), (700, 7), (2, 40000)])
def test_sums_over_symbolic_axes_go_by_way_of_partial_sums(B: int, T: int) -> None:
    """A serial float32 sum of 80000 numbers 1/3 is off by 5e-4 of its value."""
    function = plan(Instance(COLUMNS, Columns(), {"C": 8}, "float32"), backward=False).functions["forward"]
    assert [kernel.pattern for kernel in function.kernels] == ["reduce"]
    x, y = np.full((B, T, 8), 1 / 3, "float32"), np.ones((B, T), "float32")
    z = run(Instance(COLUMNS, Columns(), {"C": 8}, "float32"), function, {"x": x, "y": y}, {"B": B, "T": T})["z"]
    np.testing.assert_allclose(z, B * T * x[0, 0, 0].astype("float64"), rtol=2e-6)


def test_sums_whose_operands_slide_along_each_other_stay_chains() -> None:
    """Taps and signal of a convolution are read for many results each, though the index i + j has both variables."""
    config = BlockConfig(8, 16, 4)
    functions = plan(mechanisms.Instance(BLOCKS, config, {"C": 4}, "float32")).functions.values()
    local = [t for f in functions for kernel in f.kernels for t in getattr(kernel, "locals", [])]
    assert {t.op.name for t in local} >= {"products", "dfactors"}
    assert not any(is_row_sum(t) for t in local)
