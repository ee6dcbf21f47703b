"""Multi-head damped EMA: the tolerance rule in every dtype, long lags, and coefficients at the edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.ema import Config, reference

C, N = 19, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(causal: bool, time: int, dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    """x and the parameters as they are initialised where they were published, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(time)
    rows = C if causal else 2 * C
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    signs = torch.tensor([1.0, -1.0, 1.0])
    small, beta = (0.2 * draw(rows, N), 0.2 * draw(rows, N)), signs + 0.02 * draw(rows, N)
    return [x.to(dtype) for x in (draw(batch, time, C), *small, beta, draw(rows, N), draw(C))]


@pytest.mark.parametrize("time", [1, 2, 3, 127, 1000], ids="T{}".format)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, causal: bool, time: int) -> None:
    config = Config(causal=causal)
    formula = lambda *x: reference.forward(config, *x)
    require(judge(lambda *x: [ops.ema(*x, causal=causal)], formula, inputs(causal, time, dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_states_are_float32_beside_half_precision(dtype: torch.dtype) -> None:
    x, *parameters = inputs(True, 9, dtype)
    y, h = ops.ema(x, *parameters, return_state=True)
    assert (y.dtype, h.dtype) == (dtype, torch.float32)
    last, after = ops.ema_step(x[:, -1], *parameters, h)
    assert (last.dtype, after.dtype) == (dtype, torch.float32)


def impulse(q: float, lag: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The output `lag` positions after an impulse, where one average keeps the share q; and its gradients."""
    x = torch.zeros(1, lag + 1, C, dtype=dtype)
    x[:, 0] = 1
    odds = torch.full((C, N), q, dtype=torch.float64)
    delta = torch.log((1 - odds) / odds).to(dtype)  # p = 1 - q
    alpha = torch.full((C, N), 40.0, dtype=dtype)  # sigma(alpha) = 1
    ones, omega = torch.ones(C, N, dtype=dtype), torch.zeros(C, dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, delta, alpha, ones, ones.clone(), omega)]
    y = ops.ema(*leaves)[:, lag]
    return y, list(torch.autograd.grad(y.sum(), leaves))


@pytest.mark.parametrize(("q", "lag"), [(0.5, 100), (0.5, 120), (0.9, 700), (0.999, 20000)])
def test_gradients_of_long_lags_do_not_underflow(q: float, lag: int) -> None:
    y, grads = impulse(q, lag, torch.float32)
    expected, exact = impulse(q, lag, torch.float64)
    assert (y > 0).all()
    # q has a relative error of 6e-8, which lag-fold powers multiply by the lag.
    rtol = 1e-6 + lag * 2e-7
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=0)
    for name, a, b in zip(("x", "delta", "alpha", "beta", "gamma"), grads, exact, strict=False):
        if name != "alpha":  # sigma(40) is exactly 1 in float32, its slope 0
            torch.testing.assert_close(a.double(), b, rtol=rtol, atol=1e-37, msg=lambda text, name=name: f"{name}: {text}")


def test_lags_beyond_the_range_of_float32_give_zeros_and_no_nan() -> None:
    y, grads = impulse(0.5, 2000, torch.float32)
    assert torch.equal(y, torch.zeros_like(y))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize(("delta", "alpha"), [(200.0, 200.0), (-200.0, 0.0), (0.0, -200.0)], ids=["q=0", "p=0", "q=1"])
def test_coefficients_at_their_ends(delta: float, alpha: float) -> None:
    x, d, a, *rest = [t.double() for t in inputs(True, 40, torch.float32)]
    leaves = [t.requires_grad_() for t in (x, torch.full_like(d, delta), torch.full_like(a, alpha), *rest)]
    got, expected = ops.ema(*leaves), reference.forward(Config(), *leaves)[0]
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    for g, e in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (got, expected)), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_input_spoils_its_channel_from_there_on(bad: float) -> None:
    x, *parameters = inputs(True, 40, torch.float32)
    clean = ops.ema(x, *parameters)
    x[1, 7, 3] = bad
    y = ops.ema(x, *parameters)
    assert not y[1, 7:, 3].isfinite().any()
    y[1, 7:, 3] = clean[1, 7:, 3]
    assert torch.equal(y, clean)


def test_non_contiguous_arguments() -> None:
    x, *parameters = inputs(True, 12, torch.float32)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    flipped: list[Any] = [p.t().contiguous().t() if p.dim() == 2 else p for p in parameters]
    assert torch.equal(ops.ema(strided, *flipped), ops.ema(x, *parameters))
