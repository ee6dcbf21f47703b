"""Local attention with biases by the distance that tokens had before they were packed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops.local_attention import LOOKUP, LookupConfig, reference
from tilegen.torch import operator

W, D, H, CHUNK, FAR = 9, 10, 2, 12, 14


def draw(causal: bool, time: int, batch: int = 1) -> tuple[list[Tensor], Tensor]:
    """q, k, v and a table that is shorter than the distances that occur, in float64; positions with gaps."""
    generator = torch.Generator().manual_seed(time)
    shapes = [(batch, time, H, D)] * 3 + [(H, FAR + 1 if causal else 2 * FAR + 1)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return inputs, torch.randint(1, 4, (batch, time), generator=generator).cumsum(1)


def plain(q: Tensor, k: Tensor, v: Tensor, table: Tensor, at: Tensor, causal: bool, kind: str = "softmax") -> Tensor:
    """All pairs of one batch of sequences."""
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])[None]
    sees = (i - j <= W) & (j <= (i if causal else i + W))
    distance = (at[:, None, :] - at[:, :, None]).clamp(-FAR, 0 if causal else FAR) + FAR
    factor = D**-0.5 if kind == "softmax" else 1 / (W if causal else 2 * W)
    logits = torch.einsum("bthd,bshd->bhts", q, k) * factor + table[:, distance].transpose(0, 1)
    if kind == "softmax":
        weights = torch.softmax(logits.masked_fill(~sees, -torch.inf), -1)
    else:
        weights = torch.relu(logits).square().masked_fill(~sees, 0)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def close(got: Any, want: Any, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad(y, leaves, seed) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("causal", "kind"), [(True, "softmax"), (False, "relu2")])
def test_values_and_gradients_are_those_of_all_pairs(causal: bool, kind: str) -> None:
    (q, k, v, table), at = draw(causal, 29, 2)
    o = ops.local_attention(q, k, v, window=W, chunk=CHUNK, causal=causal, kind=kind, bias=table, bias_positions=at)
    close(o, plain(q, k, v, table, at, causal, kind), [q, k, v, table])


def test_packed_sequences_are_as_alone() -> None:
    (q, k, v, table), at = draw(True, 41)
    bounds = [0, 15, 15, 16, 41]
    packed = torch.tensor(bounds, dtype=torch.int32)
    o = ops.local_attention(q, k, v, window=W, chunk=CHUNK, bias=table, bias_positions=at, cu_seqlens=packed)
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    want = torch.cat([plain(*[x[:, part] for x in (q, k, v)], table, at[:, part], True) for part in parts], 1)
    close(o, want, [q, k, v, table])


def test_wide_values_share_the_biases_of_their_head() -> None:
    (q, k, v, table), at = draw(True, 29)
    wide = v.detach().repeat(1, 1, 1, 16).requires_grad_()
    o = ops.local_attention(q, k, wide, window=W, chunk=CHUNK, bias=table, bias_positions=at)
    close(o, plain(q, k, wide, table, at, True), [q, k, wide, table])


@pytest.mark.parametrize("cut", [4, 20])
def test_parts_joined_by_the_state_equal_the_whole(cut: int) -> None:
    (q, k, v, table), at = draw(True, 29, 2)
    state = ops.local_attention_init_state(2, H, D, D, window=W, dtype=torch.float64, positions=True)
    parts = []
    for part in (slice(0, cut), slice(cut, 29)):
        rows = [x[:, part] for x in (q, k, v)]
        o, state = ops.local_attention(
            *rows, window=W, chunk=CHUNK, bias=table, bias_positions=at[:, part], initial_state=state, return_state=True
        )
        parts.append(o)
    assert state.positions is not None
    assert torch.equal(state.positions, at[:, -W:].int())
    close(torch.cat(parts, 1), plain(q, k, v, table, at, True), [q, k, v, table])


def test_packed_parts_joined_by_the_state_equal_the_whole() -> None:
    """Sequences of 11, 3 and 0 tokens that go on with 2, 9 and 4 more."""
    first, then = [11, 3, 0], [2, 9, 4]
    (q, k, v, table), at = draw(True, sum(first) + sum(then))
    starts = [sum(first[:s]) + sum(then[:s]) for s in range(3)]
    cuts = [
        [(a, a + n) for a, n in zip(starts, first, strict=True)],
        [(a + n, a + n + m) for a, n, m in zip(starts, first, then, strict=True)],
    ]
    state = ops.local_attention_init_state(3, H, D, D, window=W, dtype=torch.float64, positions=True)
    parts = []
    for places in cuts:
        rows = [torch.cat([x[:, a:b] for a, b in places], 1) for x in (q, k, v, at)]
        bounds = torch.tensor([0, *itertools.accumulate(b - a for a, b in places)], dtype=torch.int32)
        o, state = ops.local_attention(
            *rows[:3],
            window=W,
            chunk=CHUNK,
            bias=table,
            bias_positions=rows[3],
            initial_state=state,
            return_state=True,
            cu_seqlens=bounds,
        )
        parts.append(o.split([b - a for a, b in places], 1))
    got = torch.cat([part for pair in zip(*parts, strict=True) for part in pair], 1)
    whole = [slice(a, a + n + m) for a, n, m in zip(starts, first, then, strict=True)]
    want = torch.cat([plain(*[x[:, part] for x in (q, k, v)], table, at[:, part], True) for part in whole], 1)
    close(got, want, [q, k, v, table])
    assert state.positions is not None
    assert torch.equal(state.positions[0], at[0, 13 - W : 13].int())
    assert torch.equal(state.positions[2, -4:], at[0, -4:].int())


def test_steps_equal_the_parallel_form() -> None:
    (q, k, v, table), at = draw(True, 14, 2)
    state = ops.local_attention_init_state(2, H, D, D, window=W, dtype=torch.float64, positions=True)
    steps = []
    for t in range(14):
        o, state = ops.local_attention_step(q[:, t], k[:, t], v[:, t], state, bias=table, bias_positions=at[:, t])
        steps.append(o)
    torch.testing.assert_close(torch.stack(steps, 1), plain(q, k, v, table, at, True), rtol=1e-10, atol=1e-10)


def test_same_inputs_same_bits() -> None:
    (q, k, v, table), at = draw(True, 29)
    run = lambda: ops.local_attention(q, k, v, window=W, chunk=CHUNK, bias=table, bias_positions=at).square().sum()
    first, second = (torch.autograd.grad(run(), [q, table]) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_lookups_are_indexing_and_what_is_outside_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    entry = torch.randint(-2, 13, (17, 5), generator=generator, dtype=torch.int32)
    op, text = operator(LOOKUP), operator(LOOKUP).signature(LookupConfig()).text
    close(op(LookupConfig(), {"table": table, "entry": entry})[0], reference.lookup(None, table, entry)[0], [table])
    torch.library.opcheck(op.forward, ([table, entry], text))


REFUSED = {
    "bias_positions is torch.float32": {"bias_positions": torch.zeros(1, 5)},
    r"must be int32 or int64 \[B, T\] = \[1, 5\]": {"bias_positions": torch.zeros(1, 4, dtype=torch.int32)},
    "bias_positions is given without bias": {"bias": None},
    "bias has M = 8, must be odd when not causal": {"bias": torch.zeros(H, 8), "causal": False},
    "initial_state.positions has type NoneType, must be int32": {"initial_state": True},
}


@pytest.mark.parametrize("words", REFUSED)
def test_refuses(words: str) -> None:
    rows = [torch.zeros(1, 5, H, D)] * 3
    given: dict[str, Any] = {"bias": torch.zeros(H, 7), "bias_positions": torch.arange(5)[None]} | REFUSED[words]
    if "initial_state" in given:
        given["initial_state"] = ops.local_attention_init_state(1, H, D, D, window=W)
    with pytest.raises(ArgumentError, match=words):
        ops.local_attention(*rows, window=W, **given)
