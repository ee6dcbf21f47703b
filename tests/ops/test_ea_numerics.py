"""Element-wise attention: the tolerance rule in every dtype, odd sizes, and numbers at the edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.elementwise_attention import Config, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [{"order": 6}, {"order": 2, "causal": False}]


def rows(batch: int, time: int, channels: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, time, channels, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("time", [2, 3, 17, 127], ids="T{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=["causal-6", "bidirectional-2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, options: dict[str, Any], time: int) -> None:
    config = Config(**options)
    require(
        judge(
            lambda q, k, v: [ops.elementwise_attention(q, k, v, **options)],
            lambda q, k, v: reference.forward(config, q, k, v),
            rows(2, time, 19, dtype, seed=time),
        )
    )


@pytest.mark.parametrize("options", OPTIONS, ids=["causal-6", "bidirectional-2"])
def test_tolerance_rule_for_a_long_sequence(options: dict[str, Any]) -> None:
    op, plain = (lambda *x: [ops.elementwise_attention(*x, **options)]), (lambda *x: reference.cumulative(Config(**options), *x))
    require(judge(op, plain, rows(2, 3001, 19, torch.float32)))


@pytest.mark.parametrize("options", OPTIONS, ids=["causal-6", "bidirectional-2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_a_single_position_is_its_value(dtype: torch.dtype, options: dict[str, Any]) -> None:
    # y = v whatever q and k are, so their gradients are 0: the tolerance rule has no scale there, the terms that cancel have.
    config = Config(**options)
    op, plain = (lambda *x: [ops.elementwise_attention(*x, **options)]), (lambda *x: reference.forward(config, *x))
    require(judge(op, plain, rows(4, 1, 19, dtype), backward=False))
    q, k, v = (x.requires_grad_() for x in rows(4, 1, 19, dtype))
    y = ops.elementwise_attention(q, k, v, **options)
    seed = torch.randn_like(y)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), seed)
    rounding = 100 * torch.finfo(torch.float32).eps
    terms = [x.detach().abs().max().item() for x in (seed, v, q, k)]
    torch.testing.assert_close(dv, seed, rtol=2 * torch.finfo(dtype).eps, atol=rounding * terms[0])
    limit = rounding * terms[0] * terms[1] * (1 + terms[2] + terms[3])
    assert max(dq.abs().max().item(), dk.abs().max().item()) <= limit


@pytest.mark.parametrize("channels", [1, 3, 16, 65], ids="C{}".format)
def test_any_number_of_channels(channels: int) -> None:
    inputs = rows(2, 33, channels, torch.float32)
    config = Config(order=2)
    require(
        judge(lambda *x: [ops.elementwise_attention(*x, order=2)], lambda *x: reference.forward(config, *x), inputs)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_states_are_float32_beside_half_precision(dtype: torch.dtype) -> None:
    inputs = rows(2, 9, 19, dtype)
    start = ops.elementwise_attention_init_state(2, 19, order=2, dtype=dtype)
    y, state = ops.elementwise_attention(*inputs, order=2, initial_state=start, return_state=True)
    assert y.dtype is dtype
    assert {x.dtype for x in state} == {torch.float32}
    last, after = ops.elementwise_attention_step(*[x[:, -1] for x in inputs], state)
    assert last.dtype is dtype
    assert {x.dtype for x in after} == {torch.float32}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_keys_beyond_the_range_of_exp_are_no_trouble_when_stabilised(causal: bool) -> None:
    order = 6 if causal else 2
    q, k, v = rows(2, 50, 19, torch.float32)
    k = k + 40
    y = ops.elementwise_attention(q, k, v, order=order, causal=causal)
    (expected,) = reference.forward(Config(order=order, causal=causal), q.double(), k.double(), v.double())
    assert y.isfinite().all()
    # k^2 is near 1600, where float32 has a spacing of 1.2e-4: that is what the weights can know.
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)


def test_keys_that_shrink_late_do_not_lose_the_past_of_other_channels() -> None:
    q, k, v = rows(1, 64, 19, torch.float32)
    k[:, :32, 0] += 30
    y = ops.elementwise_attention(q, k, v)
    (expected,) = reference.forward(Config(), q.double(), k.double(), v.double())
    torch.testing.assert_close(y[..., 1:].double(), expected[..., 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[:, 32:, 0].double(), expected[:, 32:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_query_spoils_its_own_element_only(bad: float) -> None:
    q, k, v = rows(2, 40, 19, torch.float32)
    clean = ops.elementwise_attention(q, k, v)
    q[1, 7, 3] = bad
    y = ops.elementwise_attention(q, k, v)
    assert y[1, 7, 3].isnan()
    y[1, 7, 3] = clean[1, 7, 3]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("which", [1, 2], ids=["k", "v"])
def test_a_bad_key_or_value_spoils_its_channel_from_there_on(which: int) -> None:
    inputs = rows(2, 40, 19, torch.float32)
    clean = ops.elementwise_attention(*inputs)
    inputs[which][1, 7, 3] = float("nan")
    y = ops.elementwise_attention(*inputs)
    assert y[1, 7:, 3].isnan().all()
    y[1, 7:, 3] = clean[1, 7:, 3]
    assert torch.equal(y, clean)
