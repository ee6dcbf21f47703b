"""Local attention: the tolerance rule, and logits at the edge of the range."""

from __future__ import annotations

import pytest
import torch

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.local_attention import Config, reference

W = 20


def rows(time: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(time)
    return [torch.randn(2, time, 2, 16, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("time", [2, 17, 100], ids="T{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, time: int) -> None:
    config = Config(W)
    formula = lambda *x: reference.forward(config, *x)
    require(judge(lambda *x: [ops.local_attention(*x, window=W, chunk=16)], formula, rows(time, dtype)))


def test_a_single_key_has_all_the_weight_whatever_it_is() -> None:
    q, k, v = (x.requires_grad_() for x in rows(1, torch.float32))
    o = ops.local_attention(q, k, v, window=W, chunk=16)
    dq, dk, dv = torch.autograd.grad(o.sum(), (q, k, v))
    assert torch.equal(o, v)
    assert torch.equal(dv, torch.ones_like(v))
    # Zero in exact arithmetic; here the difference of two roundings of <do, v>.
    for x in (dq, dk):
        torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=2e-6)


def test_large_logits_do_not_overflow() -> None:
    q, k, v = rows(50, torch.float32)
    o = ops.local_attention(100 * q, 100 * k, v, window=W, chunk=16)
    (expected,) = reference.forward(Config(W), 100 * q.double(), 100 * k.double(), v.double())
    assert o.isfinite().all()
    # Logits near 4e4 have a spacing of 4e-3 in float32: that is what the weights can know.
    torch.testing.assert_close(o.double(), expected, rtol=5e-2, atol=5e-2)
