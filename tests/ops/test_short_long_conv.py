"""Short-long convolution: gradients, kernels of any length, merged branches, steps, tolerance, arguments."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.errors import ArgumentError
from tilegen.ops.short_long_conv import Config, reference

C, KS = 3, 3
quick = settings(max_examples=40, deadline=None, derandomize=True)
lengths = st.integers(1, 40)
seeds = st.integers(0, 2**31)


def draw(
    batch: int, time: int, taps: int, *, short: int = KS, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, C), (C, short), (C, taps))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def definition(causal: bool, x: torch.Tensor, short: torch.Tensor, long: torch.Tensor) -> torch.Tensor:
    return reference.forward(Config(causal), x, short.t(), long.t())[0]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", [1, 5, 7], ids="K{}".format)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_gradients_are_those_of_finite_differences(causal: bool, taps: int) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 5, taps)]
    assert torch.autograd.gradcheck(lambda *x: ops.short_long_conv(*x, causal=causal), inputs)


@quick
@given(st.integers(1, 3), lengths, lengths, st.booleans(), seeds)
def test_values_and_gradients_are_those_of_torch_for_kernels_of_any_length(
    batch: int, time: int, half: int, causal: bool, seed: int
) -> None:
    inputs = [x.requires_grad_() for x in draw(batch, time, 2 * half - 1, seed=seed)]
    both = [ops.short_long_conv(*inputs, causal=causal), definition(causal, *inputs)]
    dy = torch.randn_like(both[0])
    for a, b in zip(*[(y.detach(), *torch.autograd.grad(y, inputs, dy)) for y in both], strict=True):
        close(a, b)


@quick
@given(lengths, lengths, seeds, st.data())
def test_the_future_changes_nothing(time: int, taps: int, seed: int, data: st.DataObject) -> None:
    x, short, long = draw(2, time, taps, seed=seed)
    cut = data.draw(st.integers(0, time))
    changed = torch.cat([x[:, :cut], x[:, cut:] * -2.5 + 1], 1)
    assert torch.equal(ops.short_long_conv(changed, short, long)[:, :cut], ops.short_long_conv(x, short, long)[:, :cut])


@quick
@given(lengths, st.lists(st.integers(1, 9), min_size=1, max_size=3), st.booleans(), seeds)
def test_branches_are_merged_into_the_long_kernel(time: int, sizes: list[int], causal: bool, seed: int) -> None:
    x, short, long = draw(2, time, 7, seed=seed)
    branches = [draw(1, 1, 2 * size - 1, seed=seed + i)[2] for i, size in enumerate(sizes)]
    apart = sum(ops.short_long_conv(x, short, kernel, causal=causal) for kernel in (long, *branches))
    close(ops.short_long_conv(x, short, long, causal=causal, branches=branches), apart)


@quick
@given(lengths, st.integers(1, 9), seeds)
def test_a_two_sided_kernel_adds_what_the_reversed_sequence_gives(time: int, taps: int, seed: int) -> None:
    x, _, past = draw(2, time, taps, seed=seed)
    _, _, future = draw(2, time, taps, seed=seed + 1)
    short = torch.zeros(C, KS, dtype=torch.float64)
    short[:, 1] = 1
    first = torch.zeros_like(short)
    first[:, 0] = 1  # both pass x on as it is, one for each kind of kernel
    both = ops.short_long_conv(x, short, ops.two_sided_kernel(past, future[:, 1:]), causal=False)
    ahead = torch.cat([torch.zeros_like(future[:, :1]), future[:, 1:]], 1)
    close(both, ops.short_long_conv(x, first, past) + ops.short_long_conv(x.flip(1), first, ahead).flip(1))


@settings(quick, max_examples=20)
@given(st.integers(1, 30), st.integers(1, 12), seeds, st.data())
def test_steps_equal_the_parallel_form(time: int, taps: int, seed: int, data: st.DataObject) -> None:
    x, short, long = draw(2, time, taps, seed=seed)
    start = data.draw(st.integers(0, time))
    y = ops.short_long_conv(x, short, long)
    state = ops.short_long_conv_init_state(2, short, long, past=x[:, :start] if start else None)
    for t in range(start, time):
        row, state = ops.short_long_conv_step(x[:, t], short, long, state)
        close(row, y[:, t])


@pytest.mark.parametrize("time", [1, 17, 127], ids="T{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, time: int) -> None:
    require(
        judge(
            lambda *x: [ops.short_long_conv(*x)],
            lambda *x: [definition(True, *x)],
            draw(2, time, 65, dtype=dtype, seed=time),
        )
    )


@pytest.mark.parametrize("short", [1, 7, 20], ids="Ks{}".format)
def test_any_short_kernel(short: int) -> None:
    inputs = draw(2, 23, 5, short=short)
    close(ops.short_long_conv(*inputs), definition(True, *inputs))


X, SHORT, LONG = draw(2, 4, 6, dtype=torch.float32)
STATE = ops.short_long_conv_init_state(2, SHORT, LONG)
CASES: dict[str, tuple[Any, str]] = {
    "causal text": (lambda: ops.short_long_conv(X, SHORT, LONG, causal="yes"), "causal is 'yes', must be True or False"),  # type: ignore[arg-type]
    "no time": (lambda: ops.short_long_conv(X[:, :0], SHORT, LONG), "T is 0, must be at least 1"),
    "no taps": (lambda: ops.short_long_conv(X, SHORT, LONG[:, :0]), r"long has shape \[3, 0\], must be a tensor \[C, K\]"),
    "kernel of one channel": (lambda: ops.short_long_conv(X, SHORT, LONG[0]), r"long has shape \[6\], must be a tensor \[C, K\]"),
    "other channels": (lambda: ops.short_long_conv(X, SHORT, LONG[:2]), r"long has shape \[6, 2\], must be \[Kl, C\] = \[6, 3\]"),
    "other dtype": (lambda: ops.short_long_conv(X, SHORT.double(), LONG), "short has dtype float64, must be float32 when x is"),
    "even and two-sided": (
        lambda: ops.short_long_conv(X, SHORT, LONG, causal=False),
        "long has 6 taps, must have an odd number with causal=False",
    ),
    "branches of one tensor": (
        lambda: ops.short_long_conv(X, SHORT, LONG, branches=LONG),
        "branches is a Tensor, must be a list",
    ),
    "branch of other channels": (lambda: ops.merge_branches(LONG, [LONG[:2]]), r"branches\[0\] is \[2, 6\]"),
    "future too long": (lambda: ops.two_sided_kernel(LONG, LONG), r"future is \[3, 6\], must be a tensor \[C, K-1\] = \[3, 5\]"),
    "step of many": (lambda: ops.short_long_conv_step(X, SHORT, LONG, STATE), r"x has shape \[2, 4, 3\]"),
    "step with another kernel": (lambda: ops.short_long_conv_step(X[:, 0], SHORT, SHORT, STATE), r"its buffer \[2, 6, 3\]"),
    "step without state": (lambda: ops.short_long_conv_step(X[:, 0], SHORT, LONG, None), "state is a NoneType"),  # type: ignore[arg-type]
    "past of another batch": (
        lambda: ops.short_long_conv_init_state(1, SHORT, LONG, past=X),
        r"past has shape \[2, 4, 3\], must be \[B, T, C\] with B = 1",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
