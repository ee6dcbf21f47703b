"""Local attention: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import ops
from tilegen.errors import ArgumentError

X = torch.zeros(2, 4, 3, 8)
STATE = ops.local_attention_init_state(2, 3, 8, 8, window=5)


def call(q: Any = X, k: Any = X, v: Any = X, window: Any = 5, **options: Any) -> Any:
    return ops.local_attention(q, k, v, window=window, **options)


CASES = {
    "window zero": (lambda: call(window=0), "window is 0, must be an integer of at least 1"),
    "window text": (lambda: call(window="5"), "window is '5', must be an integer"),
    "chunk": (lambda: call(chunk=1), "chunk is 1, must be an integer of at least 2"),
    "kind": (lambda: call(kind="laplace"), "kind is 'laplace', must be 'softmax' or 'relu2'"),
    "scale": (lambda: call(scale=float("nan")), "scale is nan, must be a finite number"),
    "causal text": (lambda: call(causal="yes"), "causal is 'yes', must be True or False"),
    "no time": (lambda: call(X[:, :0], X[:, :0], X[:, :0]), "T is 0, must be at least 1"),
    "rank": (lambda: call(X[0]), r"q has 3 dims \[4, 3, 8\], must have 4: \[B, T, H, D\]"),
    "other keys": (lambda: call(k=X[..., :4]), r"k has shape \[2, 4, 3, 4\], must be"),
    "other dtype": (lambda: call(v=X.half()), "v has dtype float16, must be float32 when q is float32"),
    "other device": (lambda: call(k=X.to("meta")), "k is on meta, must be on cpu"),
    "bias size": (lambda: call(bias=torch.zeros(3, 11)), r"bias has shape \[3, 11\], must be \[H, window\+1\] = \[3, 6\]"),
    "bias heads": (lambda: call(bias=torch.zeros(1, 6)), r"bias has shape \[1, 6\], must be"),
    "bias rank": (lambda: call(bias=torch.zeros(6)), "bias has 1 dims"),
    "positions dtype": (
        lambda: call(positions=torch.zeros(2, 4)),
        r"positions is torch.float32 \[2, 4\], must be int32 or int64",
    ),
    "positions shape": (lambda: call(positions=torch.arange(4)), r"must be int32 or int64 \[B, T\] = \[2, 4\]"),
    "odd rotary": (
        lambda: call(X[..., :7], X[..., :7], positions=torch.zeros(2, 4).int()),
        "q has D = 7, must be even with positions",
    ),
    "bidirectional state": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "no state": (lambda: call(initial_state=X), "initial_state is a Tensor, must be a LocalAttentionState"),
    "state of another window": (lambda: call(window=4, initial_state=STATE), r"k_past has shape \[2, 5, 3, 8\], must be"),
    "step of many": (
        lambda: ops.local_attention_step(X, X, X, STATE),
        r"q has shape \[2, 4, 3, 8\], must be a tensor \[B, H, D\]",
    ),
    "step without state": (lambda: ops.local_attention_step(X[0], X[0], X[0], None), "state is a NoneType, must be"),
    "state dtype": (lambda: ops.local_attention_init_state(2, 3, 8, 8, window=5, dtype=torch.int32), "dtype is torch.int32"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
