"""Control strategies of bounded-memory attention, each against a direct implementation of the method it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops import control

B, T, H, D, E, N = 2, 37, 2, 9, 11, 10


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, T, H, size, generator=generator, dtype=torch.float64) for size in (D, D, E))
    return q, k, v


def positions() -> Iterator[tuple[int, int]]:
    return ((b, h) for b in range(B) for h in range(H))


def softmax_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query [D] to rows of keys [n, D] and values [n, E]."""
    return (keys @ q * D**-0.5).softmax(0) @ values


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def means(x: Tensor, slot: Tensor) -> Tensor:
    """The mean of the rows of `x` in every slot that has any."""
    return torch.stack([x[slot == n].mean(0) for n in slot.unique()])


def slot_attention(slot: Tensor, causal: bool) -> Tensor:
    """Attention to the means of slots, position by position; `slot` [B, T, H]."""
    q, k, v = rows()
    o = torch.empty_like(v)
    for b, h in positions():
        for i in range(T):
            seen = slice(0, i + 1 if causal else T)
            index = slot[b, seen, h]
            o[b, i, h] = softmax_attention(q[b, i, h], means(k[b, seen, h], index), means(v[b, seen, h], index))
    return o


def test_linformer_is_attention_to_projected_keys_and_values() -> None:
    q, k, v = rows()
    W = torch.randn(H, N, 50, dtype=torch.float64) / 7
    phi = control.linformer(W, T).expand(B, -1, -1, -1)
    o = ops.bounded_memory_attention(q, k, v, phi, normalizer="none", causal=False)
    for b, h in positions():
        projected, values = W[h, :, :T] @ k[b, :, h], W[h, :, :T] @ v[b, :, h]
        close(o[b, :, h], (q[b, :, h] @ projected.T * D**-0.5).softmax(-1) @ values)


def test_causal_linformer_projects_each_prefix() -> None:
    q, k, v = rows()
    W = torch.randn(H, N, T, dtype=torch.float64) / 6
    o = ops.bounded_memory_attention(q, k, v, control.linformer(W, T).expand(B, -1, -1, -1), normalizer="none")
    for b, h in positions():
        for i in (0, 1, 15, 16, 36):
            projected, values = W[h, :, : i + 1] @ k[b, : i + 1, h], W[h, :, : i + 1] @ v[b, : i + 1, h]
            close(o[b, i, h], softmax_attention(q[b, i, h], projected, values))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_clusters_are_attention_to_their_means(causal: bool) -> None:
    slot = torch.randint(N - 3, (B, T, H), generator=torch.Generator().manual_seed(1))
    s = control.cluster(slot, N, dtype=torch.float64)
    close(ops.bounded_memory_attention(*rows(), s, causal=causal), slot_attention(slot, causal))


def test_a_window_is_attention_to_the_last_tokens() -> None:
    q, k, v = rows()
    s = control.window(T, N).double().expand(B, -1, H, -1)
    o = ops.bounded_memory_attention(q, k, v, s)
    for b, h in positions():
        for i in range(T):
            last = slice(max(0, i - N + 1), i + 1)
            close(o[b, i, h], softmax_attention(q[b, i, h], k[b, last, h], v[b, last, h]))


def test_a_window_is_the_shift_memory_of_the_paper() -> None:
    q, k, v = rows()
    o = ops.bounded_memory_attention(q, k, v, control.window(T, N).double().expand(B, -1, H, -1))
    shift = torch.diag(torch.ones(N - 1, dtype=torch.float64), 1)
    for b, h in positions():
        K, V = torch.zeros(N, D, dtype=torch.float64), torch.zeros(N, E, dtype=torch.float64)
        for i in range(T):
            K, V = shift @ K, shift @ V
            K[-1], V[-1] = k[b, i, h], v[b, i, h]
            if i >= N - 1:  # before, the memory of the paper holds rows of zeros
                close(o[b, i, h], softmax_attention(q[b, i, h], K, V))


def test_a_window_goes_on_step_by_step() -> None:
    q, k, v = rows()
    s = control.window(T, N).double().expand(B, -1, H, -1)
    whole = ops.bounded_memory_attention(q, k, v, s)
    state = ops.bounded_memory_attention_init_state(B, H, N, D, E, dtype=torch.float64)
    for i in range(T):
        now = control.window(1, N, start=i)[:, 0].double().expand(B, H, -1)
        o, state = ops.bounded_memory_attention_step(q[:, i], k[:, i], v[:, i], now, state)
        close(o, whole[:, i])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_compressive_memory_is_attention_to_means_of_neighbours(causal: bool) -> None:
    s = control.compressive(T, N, 4, dtype=torch.float64).expand(B, -1, H, -1)
    slot = (torch.arange(T) // 4)[None, :, None].expand(B, -1, H)
    close(ops.bounded_memory_attention(*rows(), s, causal=causal), slot_attention(slot, causal))


def test_random_slots_are_attention_to_their_means() -> None:
    draw = lambda: torch.Generator().manual_seed(5)
    s = control.random(B, T, H, N, generator=draw(), dtype=torch.float64)
    assert torch.equal(s, control.random(B, T, H, N, generator=draw(), dtype=torch.float64))
    assert torch.equal((s == 0).sum(-1), torch.ones(B, T, H, dtype=torch.long))
    close(ops.bounded_memory_attention(*rows(), s), slot_attention((s == 0).int().argmax(-1), True))


def test_mlp_over_the_whole_sequence_is_attention_of_learned_queries() -> None:
    q, k, v = rows()
    x, W = torch.randn(B, T, 7, dtype=torch.float64), torch.randn(H, N, 7, dtype=torch.float64)
    o = ops.bounded_memory_attention(q, k, v, control.mlp(x, W), causal=False)
    for b, h in positions():
        p = (W[h] @ x[b].T).softmax(-1)  # [N, T]
        close(o[b, :, h], (q[b, :, h] @ (p @ k[b, :, h]).T * D**-0.5).softmax(-1) @ (p @ v[b, :, h]))


def test_mlp_is_clamped_unless_told_otherwise() -> None:
    x, W = torch.full((1, 1, 1), 50.0), torch.tensor([[[1.0], [-1.0]]])
    assert control.mlp(x, W).flatten().tolist() == [32.0, -32.0]
    assert control.mlp(x, W, clamp=None).flatten().tolist() == [50.0, -50.0]


CASES = {
    "linformer beyond its length": (lambda: control.linformer(torch.zeros(1, 2, 5), 4, start=2), "make M larger"),
    "linformer rank": (lambda: control.linformer(torch.zeros(2, 5), 4), r"weight must be a tensor \[H, N, M\]"),
    "cluster of floats": (lambda: control.cluster(torch.zeros(1, 2, 1), 4), "must be a tensor .* of integers"),
    "compressive overflow": (lambda: control.compressive(9, 2, 4), "rate is 4: 2 slots hold 8 tokens, not 9"),
    "compressive rate": (lambda: control.compressive(9, 2, 0), "rate is 0, must be an integer of at least 1"),
    "window slots": (lambda: control.window(9, 0), "slots is 0, must be"),
    "mlp sizes": (lambda: control.mlp(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), r"x must be a tensor \[B, T, C\] with C = 4"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()


def test_slots_of_membership_are_zero_or_minus_infinity() -> None:
    s = control.cluster(torch.tensor([[[0], [2]]]), 3)
    assert s.flatten().tolist() == [0, -math.inf, -math.inf, -math.inf, -math.inf, 0]
