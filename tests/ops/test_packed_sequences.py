"""Packed sequences: every operator gives each sequence what it gives it alone, values, states and gradients."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.ops.packed_cases import CASES, KEYS, alone, bounds_of, call, draw, gradients
from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.elementwise_attention import Config, reference

# One compiled library a case serves every partition.  Sequences shorter than a tile, as long, longer, empty first, last, between.
LENGTHS = [[23], [5, 1, 18, 3], [16, 32], [0, 7, 0, 0, 17, 0], [1, 1, 2, 1]]
quick = settings(max_examples=25, deadline=None, derandomize=True)
partitions = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum)


def close(got: list[Tensor], want: list[Tensor], names: list[str]) -> None:
    for name, a, b in zip(names, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def check(name: str, lengths: list[int], seed: int) -> None:
    case = CASES[name]
    x = draw(case, lengths, seed)
    kept = [key for key in x if key not in ("m", "held")]
    leaves = [x[key].requires_grad_() for key in kept]
    state = bool(case.state) or case.begun is not None
    got, want = call(case, x, bounds_of(lengths), state), alone(case, x, lengths, state)
    close(got, want, ["output", *[f"state {k}" for k in range(len(got) - 1)]])
    close(gradients(got, leaves, seed), gradients(want, leaves, seed), [f"gradient of {key}" for key in kept])


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "-".join(map(str, lengths)))
@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))
def test_each_sequence_is_as_alone(name: str, lengths: list[int]) -> None:
    check(name, lengths, sum(lengths))


@quick
@given(st.sampled_from(sorted(CASES)), partitions, st.integers(0, 2**31))
def test_any_partition(name: str, lengths: list[int], seed: int) -> None:
    check(name, lengths, seed)


@pytest.mark.parametrize("name", ["linear_attention", "local_attention", "elementwise_attention", "ema"])
def test_rows_behind_the_last_sequence_are_not_read(name: str) -> None:
    """Neither by what lies before, nor by gradients; only what such rows give themselves is unspecified."""
    case, lengths, spare = CASES[name], [5, 0, 18], 9
    x = draw(case, lengths, 1)
    state = bool(case.state) or case.begun is not None
    kept = [key for key in x if key not in ("m", "held")]
    leaves = [x[key].requires_grad_() for key in kept]
    want = alone(case, x, lengths, state)
    more = dict(x) | {key: torch.cat([x[key], torch.full_like(x[key][:, :spare], torch.nan)], 1) for key in case.rows}
    got = call(case, more, bounds_of(lengths), state)
    got[0] = got[0][:, : sum(lengths)]
    close(got, want, ["output", *[f"state {k}" for k in range(len(got) - 1)]])
    close(gradients(got, leaves, 1), gradients(want, leaves, 1), [f"gradient of {key}" for key in kept])


def of_each(formula: Callable[..., tuple[Tensor, ...]], lengths: list[int]) -> Callable[..., list[Tensor]]:
    """A formula for one sequence on the parts of a pack."""

    def packed(*rows: Tensor) -> list[Tensor]:
        parts = zip(*[x.split(lengths, 1) for x in rows], strict=True)
        return [torch.cat([formula(*part)[0] for part in parts if part[0].shape[1]], 1)]

    return packed


@pytest.mark.parametrize("lengths", LENGTHS[:4], ids=lambda lengths: "-".join(map(str, lengths)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule(dtype: torch.dtype, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    rows = [torch.randn(1, sum(lengths), 5, generator=generator).to(dtype) for _ in KEYS]
    op = lambda *x: [ops.elementwise_attention(*x, order=2, cu_seqlens=bounds_of(lengths))]
    require(judge(op, of_each(lambda *x: reference.forward(Config(order=2), *x), lengths), rows))


def test_what_lies_beyond_wrong_bounds_is_not_touched() -> None:
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    kernels = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    for bounds in ([0, 900, 2**31 - 1], [-(2**31), -5, 20], [7, 3, 12], [20, 0, 0]):
        y = ops.short_long_conv(x, *kernels, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
        assert y.shape == x.shape
