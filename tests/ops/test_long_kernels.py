"""Long convolutions by blocks: values and gradients, kernels of any length, tolerance, and where this form is taken."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.build.scheduled import schedule
from tilegen.build.target import resolve
from tilegen.errors import ArgumentError, ScheduleError
from tilegen.mechanisms import Instance
from tilegen.ops.short_long_conv import BLOCKS, BlockConfig, Config, reference
from tilegen.ops.short_long_conv.form import SHORTEST, by_blocks
from tilegen.ops.short_long_conv.op import _by_blocks
from tilegen.plan.plan import plan

# Rows of eight positions in two blocks, two groups of channels.
SMALL = {True: BlockConfig(2, 4, 2), False: BlockConfig(2, 4, 2, causal=False)}
C, ROOM = 4, 8


def draw(
    batch: int, time: int, taps: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, channels), (channels, 3), (channels, taps))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def definition(causal: bool, x: torch.Tensor, short: torch.Tensor, long: torch.Tensor) -> torch.Tensor:
    return reference.forward(Config(causal), x, short.t(), long.t())[0]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_gradients_are_those_of_finite_differences(causal: bool) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 7, 9, C)]
    assert torch.autograd.gradcheck(lambda *x: _by_blocks(SMALL[causal], *x), inputs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, ROOM), st.integers(1, 20), st.booleans(), st.integers(0, 2**31))
@example(1, ROOM, ROOM, True, 0)
@example(1, ROOM, 2 * ROOM - 1, False, 0)
def test_values_and_gradients_for_kernels_of_any_length(batch: int, time: int, taps: int, causal: bool, seed: int) -> None:
    inputs = [x.requires_grad_() for x in draw(batch, time, taps if causal else 2 * taps - 1, C, seed=seed)]
    both = [_by_blocks(SMALL[causal], *inputs), definition(causal, *inputs)]
    dy = torch.randn_like(both[0])
    for a, b in zip(*[(y.detach(), *torch.autograd.grad(y, inputs, dy)) for y in both], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_where_the_operator_takes_this_form(dtype: torch.dtype) -> None:
    inputs = draw(2, 500 + SHORTEST // 8, 601, 32, dtype)
    assert by_blocks(True, inputs[0], inputs[2]) == BlockConfig(32, 32)
    require(judge(lambda *x: [ops.short_long_conv(*x)], lambda *x: [definition(True, *x)], inputs))


def test_one_graph_of_torch_compile() -> None:
    inputs = draw(2, 564, 601, 32, torch.float32)
    compiled = torch.compile(ops.short_long_conv, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), ops.short_long_conv(*inputs))


def chosen(batch: int, time: int, taps: int, channels: int = 32, device: str = "cpu", **options: Any) -> BlockConfig | None:
    x, long = torch.empty(batch, time, channels, device=device), torch.empty(channels, taps, device=device)
    return by_blocks(True, x, long.to(**options) if options else long)


def test_blocks_are_for_long_kernels_of_long_sequences() -> None:
    assert chosen(2, SHORTEST, SHORTEST) == BlockConfig(16, 32)
    assert chosen(2, 2048, 2047) == BlockConfig(32, 64)
    assert chosen(1, 16384, 16384) == BlockConfig(128, 128)
    assert [found and found.width for found in (chosen(2, 2048, 2047, 16), chosen(2, 2048, 2047, 40))] == [8, 8]
    # A sum of few terms is short, as is a sequence of few positions; 20 channels are no whole vectors, 8 only one; a GPU has another form.
    others = [
        chosen(4, 2048, 64),
        chosen(4, SHORTEST - 1, 4096),
        chosen(2, 2048, 2047, 20),
        chosen(2, 2048, 2047, 8),
        chosen(2, 2048, 2047, device="meta"),
    ]
    assert others == [None] * 5


def test_arguments_that_do_not_fit_are_told_as_elsewhere() -> None:
    x, short, long = draw(1, 600, 600, 32, torch.float32)
    with pytest.raises(ArgumentError, match="long has dtype float64, must be float32"):
        ops.short_long_conv(x, short, long.double())
    with pytest.raises(ArgumentError, match=r"long has shape \[600, 16\], must be \[Kl, C\] = \[600, 32\]"):
        ops.short_long_conv(x, short, long[:16])


def test_there_are_no_kernels_for_gpus() -> None:
    instance = Instance(BLOCKS, SMALL[True], {"C": C}, "float32")
    with pytest.raises(ScheduleError, match="block_convolution is for CPUs"):
        schedule(instance, plan(instance).functions["forward"], resolve("sm_90"))
