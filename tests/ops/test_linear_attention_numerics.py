"""Linear attention: the tolerance rule in every dtype, odd sizes, decays at their limits, large values, bad values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import linear_attention_cases as cases
from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.ops.linear_attention import Config, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
USUAL = {"chunk": 64}
TOLERANCE: list[dict[str, Any]] = [
    USUAL,
    {"causal": False, **USUAL},
    {"decay": "token", "normalize": True, "initial_state": True, "return_state": True, **USUAL},
]


def judged(options: dict[str, Any], given: dict[str, torch.Tensor], formula: Any, outputs: int, **fixed: torch.Tensor) -> None:
    """Require the tolerance rule of the first `outputs` results; states and decays are rounded to the dtype too, but kept in theirs."""
    io = given["q"].dtype

    def op(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = zip(given.items(), tensors, strict=True)
        return cases.call(options, **{name: x.to(like.dtype) for (name, like), x in named}, **fixed)[:outputs]

    def plain(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made: tuple[torch.Tensor, ...] = formula(Config(**options), **dict(zip(given, tensors, strict=True)))
        return made[:outputs]

    require(judge(op, plain, [x.to(io) for x in given.values()]))


@pytest.mark.parametrize("time", [1, 3, 17, 64, 127, 300], ids="T{}".format)
@pytest.mark.parametrize("options", TOLERANCE, ids=["causal", "bidirectional", "decay-normalised-states"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_tolerance_rule_for_values_and_gradients(dtype: torch.dtype, options: dict[str, Any], time: int) -> None:
    given = cases.rows(2, time, options, dtype, seed=time)
    if "decay" in given:
        given["decay"] *= 0.05  # what layers use: half of the state is left after a dozen tokens
    judged(options, given, reference.forward, 3)


@pytest.mark.parametrize("strength", [0.01, 0.05, 1.0], ids="{}".format)
@pytest.mark.parametrize("options", [{"decay": "head", **USUAL}, TOLERANCE[2]], ids=["head", "token-normalised-states"])
def test_tolerance_rule_for_decays_of_many_heads(
    options: dict[str, Any], strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the gradient of two heads' decays, two numbers, the largest error would be luck; strong ones sum up to -50 in a chunk."""
    monkeypatch.setattr(cases, "H", 16)
    for time in (64, 127):
        given = cases.rows(2, time, options, torch.float32, seed=time)
        given["decay"] *= strength
        judged(options, given, reference.forward, 3)


@pytest.mark.parametrize("time", [3, 17, 64, 127], ids="T{}".format)
def test_strong_decays_are_as_exact_as_weak_ones(time: int) -> None:
    options = TOLERANCE[2]
    judged(options, cases.rows(2, time, options, torch.float32, seed=time), reference.forward, 3)


@pytest.mark.parametrize("time", [1, 63, 65, 1021, 4097], ids="T{}".format)
def test_long_and_odd_lengths(time: int) -> None:
    judged(USUAL, cases.rows(1, time, USUAL, torch.float32), reference.chunked, 1)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 16), (16, 5), (33, 65)], ids=lambda s: f"D{s[0]}-E{s[1]}")
def test_any_sizes_of_keys_and_values(sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 70, 3, n, generator=generator) for n in (sizes[0], sizes[0], sizes[1]))
    require(
        judge(lambda *x: [ops.linear_attention(*x)], lambda *x: reference.forward(Config(), *x), [q, k, v]),
    )


def decayed(g: torch.Tensor, time: int = 23) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output under a decay, and what went in."""
    given = cases.rows(2, time, {})
    return ops.linear_attention(**given, decay=g, chunk=cases.CHUNK), given


def test_a_decay_of_zero_is_none() -> None:
    o, given = decayed(torch.zeros(cases.H, dtype=torch.float64))
    torch.testing.assert_close(o, cases.call({}, **given)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("g", [-50.0, -1e4, float("-inf")], ids=["50", "10000", "inf"])
@pytest.mark.parametrize("kind", ["head", "token"])
def test_a_decay_to_nothing_leaves_the_token_itself(kind: str, g: float) -> None:
    shape = (cases.H,) if kind == "head" else (2, 23, cases.H)
    decay = torch.full(shape, g, dtype=torch.float64, requires_grad=True)
    o, given = decayed(decay)
    alone = (given["q"] * given["k"]).sum(-1, keepdim=True) * given["v"] * cases.D**-0.5
    torch.testing.assert_close(o, alone, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(o.sum(), decay)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e-18


def test_a_reset_in_the_middle_starts_anew() -> None:
    decay = torch.zeros(2, 23, cases.H, dtype=torch.float64)
    decay[:, 12] = float("-inf")
    o, given = decayed(decay)
    second = cases.call({}, **{name: x[:, 12:] for name, x in given.items()})[0]
    torch.testing.assert_close(o[:, 12:], second, rtol=1e-12, atol=1e-12)


def test_a_state_of_equal_increments_does_not_stagnate() -> None:
    time = 100_000
    q, k, v = (torch.ones(1, time, 1, 2, dtype=torch.bfloat16) for _ in range(3))
    o, S = ops.linear_attention(q, k, v, scale=1.0, return_state=True)
    assert torch.equal(S, torch.full_like(S, time))
    assert torch.equal(o.flatten(2)[0, -1].float(), torch.full((2,), 2.0 * time).bfloat16().float())


def test_rows_whose_weights_sum_to_zero_are_zero_without_a_gradient() -> None:
    given = {name: x.requires_grad_() for name, x in cases.rows(1, 9, {"normalize": True}).items()}
    with torch.no_grad():
        given["q"][:, 4] = 0
        given["k"][:, :2] = 0
    (o,) = cases.call({"normalize": True}, **given)
    assert torch.equal(o[:, [0, 1, 4]], torch.zeros_like(o[:, [0, 1, 4]]))
    gradients = torch.autograd.grad(o.sum(), list(given.values()))
    assert all(g.isfinite().all() for g in gradients)
    assert torch.equal(gradients[0][:, [0, 1, 4]], torch.zeros_like(o[:, [0, 1, 4], :, :1].expand(-1, -1, -1, cases.D)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_states_are_float32_beside_half_precision(dtype: torch.dtype) -> None:
    options = {"normalize": True, "decay": "token", "initial_state": True, "return_state": True, **USUAL}
    given = cases.rows(2, 9, options, dtype)
    o, S, z = cases.call(options, **given)
    assert (o.dtype, S.dtype, z.dtype) == (dtype, torch.float32, torch.float32)
    row, after = ops.linear_attention_step(
        *[given[x][:, -1] for x in "qkv"], ops.LinearAttentionState(S, z), decay=given["decay"][:, -1]
    )
    assert (row.dtype, after.S.dtype, after.z.dtype) == (dtype, torch.float32, torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_query_spoils_its_own_row_only(bad: float) -> None:
    given = cases.rows(2, 40, USUAL, torch.float32)
    (clean,) = cases.call(USUAL, **given)
    given["q"][1, 7, 1, 2] = bad
    (o,) = cases.call(USUAL, **given)
    assert not o[1, 7, 1].isfinite().any()
    o[1, 7, 1] = clean[1, 7, 1]
    assert torch.equal(o, clean)


@pytest.mark.parametrize("chunk", [1, 16, 64], ids="C{}".format)
def test_the_chunk_changes_rounding_only(chunk: int) -> None:
    given = cases.rows(2, 50, {})
    torch.testing.assert_close(
        ops.linear_attention(**given, chunk=chunk), ops.linear_attention(**given, chunk=cases.CHUNK), rtol=1e-12, atol=1e-12
    )
