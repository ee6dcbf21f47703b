"""Bounded-memory attention: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import nn, ops
from tilegen.errors import ArgumentError

Q, V, S = torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 6), torch.zeros(2, 4, 3, 5)
STATE = ops.bounded_memory_attention_init_state(2, 3, 5, 8, 6)


def call(q: Any = Q, k: Any = Q, v: Any = V, s: Any = S, **options: Any) -> Any:
    return ops.bounded_memory_attention(q, k, v, s, **options)


CASES = {
    "normalizer": (lambda: call(normalizer="softmax"), "normalizer is 'softmax', must be one of running, fixed, none"),
    "causal text": (lambda: call(causal="yes"), "causal is 'yes', must be True or False"),
    "scale": (lambda: call(scale=float("nan")), "scale is nan, must be a finite number"),
    "chunk": (lambda: call(chunk=0), "chunk is 0, must be an integer of at least 1"),
    "no time": (lambda: call(Q[:, :0], Q[:, :0], V[:, :0], S[:, :0]), "T is 0, must be at least 1"),
    "no slots": (lambda: call(s=S[..., :0]), "N is 0, must be at least 1"),
    "rank": (lambda: call(s=S[0]), "s has 3 dims"),
    "other length": (lambda: call(s=S[:, :3]), r"s has shape \[2, 3, 3, 5\], must be \[B, T, H, N\] = \[2, 4, 3, 5\]"),
    "other heads": (lambda: call(v=V[:, :, :2]), r"v has shape \[2, 4, 2, 6\], must be"),
    "other key size": (lambda: call(k=Q[..., :7]), r"k has shape \[2, 4, 3, 7\], must be"),
    "other dtype": (lambda: call(k=Q.double()), "k has dtype float64, must be float32"),
    "s in double": (lambda: call(s=S.double()), "s has dtype float64, must be float32"),
    "s in half": (lambda: call(s=S.half()), "s has dtype float16, must be float32"),
    "no tensor": (lambda: call(q=3), "q is a int, must be a torch.Tensor"),
    "bidirectional state": (lambda: call(causal=False, initial_state=STATE), "initial_state is set with causal=False"),
    "bidirectional end": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "no state": (lambda: call(initial_state=Q), r"initial_state is a Tensor, must be a BoundedMemoryState \(K, V, z\)"),
    "state without z": (lambda: call(initial_state=STATE._replace(z=None)), "initial_state.z is None, must be a tensor"),
    "z without normalizer": (lambda: call(initial_state=STATE, normalizer="none"), "initial_state.z is a tensor, must be None"),
    "state of other slots": (
        lambda: call(s=S[..., :4], initial_state=STATE),
        r"K has shape \[2, 3, 5, 8\], must be \[B, H, N, D\] = \[2, 3, 4, 8\]",
    ),
    "state dtype": (lambda: ops.bounded_memory_attention_init_state(1, 1, 1, 1, 1, dtype=torch.int32), "dtype is torch.int32"),
    "step of many": (
        lambda: ops.bounded_memory_attention_step(Q, Q, V, S, STATE),
        r"q has shape \[2, 4, 3, 8\], must be a tensor \[B, H, X\]",
    ),
    "step without state": (lambda: ops.bounded_memory_attention_step(Q[:, 0], Q[:, 0], V[:, 0], S[:, 0], None), "state is a NoneType"),
    "layer heads": (lambda: nn.ABCAttention(10, heads=4), "dim is 10"),
    "layer slots": (lambda: nn.ABCAttention(8, heads=2, slots=0), "slots is 0, must be an integer of at least 1"),
    "layer normalizer": (lambda: nn.ABCAttention(8, heads=2, normalizer="no"), "normalizer is 'no', must be"),
    "layer input": (lambda: nn.ABCAttention(8, heads=2)(Q), r"x has shape \[2, 4, 3, 8\], must be \[B, T, C\] with C = 8"),
    "layer step": (
        lambda: nn.ABCAttention(8, heads=2, causal=False).step(torch.zeros(2, 8), None),
        "step is called on .* with causal=False",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
