"""Bounded-memory attention: the tolerance rule, odd sizes, and s at the edge of the exponential."""

from __future__ import annotations

import pytest
import torch

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.bounded_memory_attention import Config, reference

SIZES = (9, 9, 11, 10)


def rows(shape: tuple[int, int, int], dtype: torch.dtype, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("time", [16, 17, 127], ids="T{}".format)
@pytest.mark.parametrize("normalizer", ["running", "fixed", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, normalizer: str, time: int) -> None:
    require(
        judge(
            lambda *x: [ops.bounded_memory_attention(*x, normalizer=normalizer)],
            lambda *x: reference.forward(Config(normalizer), *x),
            rows((2, time, 2), dtype, seed=time),
        )
    )


def test_one_token_alone_is_its_value_and_what_cancels_stays_small() -> None:
    """All slots are equal then: the gradients of q, k and s are 0, which the rule, relative to their scale, cannot judge."""
    inputs = rows((2, 1, 2), torch.float32)
    run = lambda *x: [ops.bounded_memory_attention(*x)]
    require(judge(run, lambda *x: reference.forward(Config(), *x), inputs, backward=False))
    leaves = [x.requires_grad_() for x in inputs]
    seed = torch.randn(2, 1, 2, SIZES[2])
    dq, dk, dv, ds = torch.autograd.grad(run(*leaves)[0], leaves, seed)
    torch.testing.assert_close(dv, seed, rtol=1e-6, atol=1e-6)
    for gradient in (dq, dk, ds):
        assert gradient.abs().max() < 5e-6  # a few units in the last place of terms that are of order 10


def test_tolerance_rule_over_the_whole_sequence() -> None:
    config = Config("running", causal=False)
    run = lambda *x: [ops.bounded_memory_attention(*x, causal=False)]
    require(judge(run, lambda *x: reference.forward(config, *x), rows((2, 127, 2), torch.float32)))


@pytest.mark.parametrize("slots", [4, 256], ids="N{}".format)
def test_any_number_of_slots(slots: int) -> None:
    inputs = rows((1, 33, 1), torch.float32, (16, 16, 12, slots))
    require(judge(lambda *x: [ops.bounded_memory_attention(*x)], lambda *x: reference.forward(Config(), *x), inputs))


def test_s_may_be_float32_beside_half_precision() -> None:
    q, k, v, _ = rows((2, 33, 2), torch.bfloat16)
    s = 100 * torch.randn(2, 33, 2, SIZES[3], generator=torch.Generator().manual_seed(1))
    o, state = ops.bounded_memory_attention(q, k, v, s, return_state=True)
    assert o.dtype is torch.bfloat16
    assert {x.dtype for x in state} == {torch.float32}
    (expected,) = reference.forward(Config(), *[x.double() for x in (q, k, v, s)])
    torch.testing.assert_close(o.double(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("normalizer", ["running", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [30.0, 1e4], ids=["thirty", "ten-thousand"])
def test_large_s_neither_overflows_nor_gives_nan(size: float, dtype: torch.dtype, normalizer: str) -> None:
    """Steps of `size` up and down between neighbours, inside chunks and across them."""
    q, k, v, s = rows((2, 50, 2), dtype)
    generator = torch.Generator().manual_seed(2)
    s = s + size * torch.randint(-1, 2, s.shape, generator=generator).to(dtype)
    inputs = [x.requires_grad_() for x in (q, k, v, s)]
    o = ops.bounded_memory_attention(*inputs, normalizer=normalizer)
    gradients = torch.autograd.grad(o.square().sum(), inputs)
    assert all(x.isfinite().all() for x in (o, *gradients))
    wide = [x.detach().double().requires_grad_() for x in inputs]
    (expected,) = reference.forward(Config(normalizer), *wide)
    exact = torch.autograd.grad(expected.square().sum(), wide)
    # s has a spacing of 1e-3 at 1e4 in float32: that is what the weights can know.
    tolerance = 1e-9 if dtype is torch.float64 else 10 * size * torch.finfo(dtype).eps
    torch.testing.assert_close(o.double(), expected, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=10 * tolerance * (1 + b.abs().max().item()))


def test_s_that_climbs_forever_keeps_the_last_token_and_s_that_falls_the_first() -> None:
    q, k, v, s = rows((1, 70, 1), torch.float32)
    climb = 1e4 * torch.arange(70.0)[None, :, None, None].expand(s.shape)
    torch.testing.assert_close(ops.bounded_memory_attention(q, k, v, climb), v)
    torch.testing.assert_close(ops.bounded_memory_attention(q, k, v, -climb), v[:, :1].expand(v.shape))


def test_a_bad_value_spoils_later_rows_of_its_head_only() -> None:
    inputs = rows((2, 70, 2), torch.float32)
    clean = ops.bounded_memory_attention(*inputs)
    inputs[2][1, 41, 0, 3] = float("nan")
    o = ops.bounded_memory_attention(*inputs)
    assert o[1, 41:, 0, 3].isnan().all()
    o[1, 41:, 0, 3] = clean[1, 41:, 0, 3]
    same = o.isnan() | torch.isclose(o, clean, rtol=0, atol=0)
    assert same[0].all()
    assert same[1, :, 1].all()
    assert torch.equal(o[1, :32, 0], clean[1, :32, 0])


def test_a_step_of_s_changes_no_bit_of_earlier_rows() -> None:
    """Neither in the step's own chunk, where a common reference for all rows would, nor in those before it."""
    inputs = rows((2, 40, 2), torch.float32)
    clean = ops.bounded_memory_attention(*inputs)
    inputs[3][0, 21] += 100
    inputs[3][1, 39] += 1e4
    o = ops.bounded_memory_attention(*inputs)
    for b, step in ((0, 21), (1, 39)):
        assert torch.equal(o[b, :step], clean[b, :step])
        assert not torch.equal(o[b, step], clean[b, step])
