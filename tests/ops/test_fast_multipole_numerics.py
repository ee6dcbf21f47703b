"""Fast multipole attention: the tolerance rule, and numbers at the edge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.fast_multipole_attention import Config, reference

OPTIONS = {"block": 16, "rank": 4, "levels": 2, "count_bias": True}
DTYPES = [torch.float32, torch.bfloat16]


def rows(batch: int, time: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, time, 2, 24, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype) -> None:
    for time in (2, 17, 31, 64, 100, 128):
        require(
            judge(
                lambda q, k, v: [ops.fast_multipole_attention(q, k, v, **OPTIONS)],
                lambda q, k, v: reference.forward(Config(**OPTIONS), q, k, v),
                rows(2, time, dtype, seed=time),
            )
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_a_lone_token_gives_its_value_and_gets_no_gradient_through_its_weight(dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in rows(2, 1, dtype))
    y = ops.fast_multipole_attention(q, k, v, **OPTIONS)
    assert torch.equal(y, v)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), seed)
    assert torch.equal(dv, seed)
    # <dy, v> - <dy, y>, whose two sums of 24 products may round differently in float32.
    bound = 24 * torch.finfo(torch.float32).eps * (seed * v).abs().float().sum(-1, keepdim=True)
    assert (dq.abs() <= bound * k.abs()).all() and (dk.abs() <= bound * q.abs()).all()


def test_large_logits_do_not_overflow() -> None:
    q, k, v = rows(1, 100, torch.float32)
    y = ops.fast_multipole_attention(q * 100, k * 100, v, **OPTIONS)
    (expected,) = reference.forward(Config(**OPTIONS), *(x.double() for x in (q * 100, k * 100, v)))
    assert y.isfinite().all()
    # Logits reach 1e5, where float32 has a spacing of 0.008: that is what the weights can know.
    torch.testing.assert_close(y.double(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_query_spoils_its_own_row_only(bad: float) -> None:
    q, k, v = rows(2, 90, torch.float32)
    clean = ops.fast_multipole_attention(q, k, v, **OPTIONS)
    q[1, 37, 0, 3] = bad
    y = ops.fast_multipole_attention(q, k, v, **OPTIONS)
    assert y[1, 37, 0].isnan().all()
    y[1, 37, 0] = clean[1, 37, 0]
    assert torch.equal(y, clean)


def test_a_bad_key_spoils_nothing_before_it() -> None:
    q, k, v = rows(1, 90, torch.float32)
    clean = ops.fast_multipole_attention(q, k, v, **OPTIONS)
    k[0, 37, 1, 2] = float("nan")
    y = ops.fast_multipole_attention(q, k, v, **OPTIONS)
    assert torch.equal(y[:, :, 0], clean[:, :, 0])
    assert torch.equal(y[:, :37], clean[:, :37])
    assert y[0, 37:, 1].isnan().all()
