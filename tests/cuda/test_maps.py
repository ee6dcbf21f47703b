"""Maps and reductions as CUDA text: neighbours by wide loads, never outside a tensor; long sums in a fixed order, accurately."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import tilegen
from tests.cuda import walks
from tests.cuda.emulator.module import ORDERS
from tilegen.mechanisms import Instance
from tilegen.plan.plan import plan


@tilegen.mechanism(inputs={"x": "B T C", "z": "C"}, outputs={"shifted": "B T C", "both": "B T D", "turned": "B C T"})
def map_reads(config, dims, x, z):
    """Reads one step before, of one of two halves, and across the last axis."""
    from tilegen.expression import compute, const, if_then_else

    B, T, C = x.shape
    shifted = compute(x.shape, lambda b, t, c: if_then_else(t > 0, x[b, t - 1, c], const(0, dims.io)) * z[c], name="shifted")
    both = compute((B, T, 2 * C), lambda b, t, c: if_then_else(c < C, x[b, t, c], z[c - C]), name="both")
    turned = compute((B, C, T), lambda b, c, t: x[b, t, c], name="turned")
    return shifted, both, turned


@tilegen.mechanism(inputs={"x": "B T C", "w": "B T C"}, outputs={"sums": "C", "most": "C", "pairs": "B T", "mean": "C"})
def reductions(config, dims, x, w):
    """Few results of long sums, many results of short ones, and something made of a sum."""
    from tilegen.expression import compute, reduce_axis, reduce_max, reduce_sum

    B, T, C = x.shape
    b, t, p, q, c = (reduce_axis(n, name) for n, name in ((B, "b"), (T, "t"), (B, "p"), (T, "q"), (C, "c")))
    sums = compute((C,), lambda i: reduce_sum(x[b.var, t.var, i] * w[b.var, t.var, i], [b, t]), name="sums")
    most = compute((C,), lambda i: reduce_max(x[p.var, q.var, i], [p, q]), name="most")
    pairs = compute((B, T), lambda i, j: reduce_sum(x[i, j, c.var] * w[i, j, c.var], c), name="pairs")
    mean = compute((C,), lambda i: sums[i] / (B * T).astype(dims.io), name="mean")
    return sums, most, pairs, mean


def run(
    operator: tilegen.custom.CustomOperator,
    dtype: str,
    static: dict[str, int],
    values: Mapping[str, Tensor],
    order: str = "forward",
):
    mechanism = operator.mechanism
    instance = Instance(mechanism, mechanism.config(), static, dtype)
    function = plan(instance, backward=False).functions["forward"]
    B, T, _ = values["x"].shape
    return walks.run(instance, function, values, {"B": B, "T": T}, order=order)


@pytest.mark.parametrize("C", [1, 6, 16, 24], ids=lambda C: f"C{C}")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_maps_read_what_their_guards_say(dtype: str, C: int) -> None:
    torch.manual_seed(C)
    x, z = torch.randn(2, 5, C).to(walks.DTYPES[dtype]), torch.randn(C).to(walks.DTYPES[dtype])
    got = run(map_reads, dtype, {"C": C, "D": 2 * C}, {"x": x, "z": z})
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    torch.testing.assert_close(got["shifted"], before * z, rtol=0, atol=0)
    torch.testing.assert_close(got["both"], torch.cat([x, z.expand_as(x)], 2), rtol=0, atol=0)
    torch.testing.assert_close(got["turned"], x.mT.contiguous(), rtol=0, atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_reductions_in_every_order(order: str) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 171, 10, dtype=torch.float64), torch.randn(3, 171, 10, dtype=torch.float64)
    got = run(reductions, "float64", {"C": 10}, {"x": x, "w": w}, order)
    want = {"sums": (x * w).sum((0, 1)), "most": x.amax((0, 1)), "pairs": (x * w).sum(2), "mean": (x * w).mean((0, 1))}
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-13, atol=1e-13)


def test_long_float32_sums_are_as_accurate_as_pairwise_ones() -> None:
    torch.manual_seed(0)
    x, w = torch.rand(2, 6000, 2), torch.ones(2, 6000, 2)
    got = run(reductions, "float32", {"C": 2}, {"x": x, "w": w})
    exact = x.double().sum((0, 1))
    # 12000 terms in one row would be off by some 1e-5 of the sum.
    assert ((got["sums"].double() - exact).abs() / exact).max() < 5e-7
