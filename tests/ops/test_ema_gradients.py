"""Multi-head damped EMA: values and gradients in float64 against the convolution, the recurrence and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.ops.ema import Config, reference

C, N = 3, 2


def parameters(causal: bool, seed: int = 0, channels: int = C, orders: int = N) -> list[Tensor]:
    """delta, alpha, beta, gamma and omega in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = channels if causal else 2 * channels
    shapes = [(rows, orders)] * 4 + [(channels,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def tokens(batch: int, time: int, channels: int = C) -> Tensor:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(batch, time, channels, generator=generator, dtype=torch.float64).requires_grad_()


def compare(got: Any, expected: Any, inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients for random output gradients."""
    seeds = [torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7)) for y in expected]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for a, b in zip(*(torch.autograd.grad(y, inputs, seeds) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_gradients_are_those_of_finite_differences(causal: bool) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: ops.ema(*inputs, causal=causal), (tokens(2, 5), *parameters(causal)))


def test_gradients_through_initial_and_final_state() -> None:
    h = torch.randn(2, C, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def run(h: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ema(*inputs, initial_state=h, return_state=True)

    assert torch.autograd.gradcheck(run, (h, tokens(2, 4), *parameters(True)))


@pytest.mark.parametrize("time", [1, 2, 3, 17, 127], ids="T{}".format)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("form", ["forward", "convolution"])
def test_values_and_gradients_are_those_of_plain_torch(form: str, causal: bool, time: int) -> None:
    inputs = [tokens(3, time), *parameters(causal)]
    expected = getattr(reference, form)(Config(causal=causal), *inputs)
    compare([ops.ema(*inputs, causal=causal)], expected, inputs)


def test_gradients_of_a_sequence_in_parts_are_those_of_the_whole() -> None:
    x, *rest = inputs = [tokens(2, 9), *parameters(True)]
    first, h = ops.ema(x[:, :4], *rest, return_state=True)
    second, end = ops.ema(x[:, 4:], *rest, initial_state=h, return_state=True)
    whole = ops.ema(*inputs, return_state=True)
    compare([torch.cat([first, second], 1), end], whole, inputs)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("lengths", [[4, 1, 6], [0, 5, 0, 0, 3, 0], [11]], ids=str)
def test_packed_sequences_are_the_sequences_alone(lengths: list[int], causal: bool) -> None:
    x, *rest = inputs = [tokens(1, sum(lengths)), *parameters(causal)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    alone = [ops.ema(part, *rest, causal=causal) for part in x.split(lengths, 1) if part.shape[1]]
    compare([ops.ema(*inputs, causal=causal, cu_seqlens=bounds)], [torch.cat(alone, 1)], inputs)


def test_packed_gradients_are_those_of_finite_differences() -> None:
    bounds = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    run = lambda *inputs: ops.ema(*inputs, causal=False, cu_seqlens=bounds)
    assert torch.autograd.gradcheck(run, (tokens(1, 5), *parameters(False)))


@pytest.mark.parametrize("orders", [1, 16], ids="N{}".format)
def test_any_number_of_averages(orders: int) -> None:
    inputs = [tokens(2, 21), *parameters(True, orders=orders)]
    compare([ops.ema(*inputs)], reference.forward(Config(), *inputs), inputs)
