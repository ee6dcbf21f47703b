"""Element-wise attention: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import nn, ops
from tilegen.errors import ArgumentError

X = torch.zeros(2, 4, 3)
STATE = ops.elementwise_attention_init_state(2, 3)


def call(q: Any = X, k: Any = X, v: Any = X, **options: Any) -> Any:
    return ops.elementwise_attention(q, k, v, **options)


def step(x: torch.Tensor, state: Any) -> Any:
    return ops.elementwise_attention_step(x, x, x, state)


CASES = {
    "odd order": (lambda: call(order=3), "order is 3, must be an even integer"),
    "order zero": (lambda: call(order=0), "order is 0, must be an even integer"),
    "order text": (lambda: call(order="6"), "order is '6', must be an even integer"),
    "c2 zero": (lambda: call(c2=0.0), "c2 is 0.0, must be a finite number above 0"),
    "c2 infinite": (lambda: call(c2=float("inf")), "c2 is inf, must be a finite number"),
    "causal text": (lambda: call(causal="yes"), "causal is 'yes', must be True or False"),
    "no time": (lambda: call(X[:, :0], X[:, :0], X[:, :0]), r"q has shape \[2, 0, 3\]: T is 0, must be at least 1"),
    "no batch": (lambda: call(X[:0], X[:0], X[:0]), "B is 0, must be at least 1"),
    "no channels": (lambda: call(X[..., :0], X[..., :0], X[..., :0]), "C is 0, must be at least 1"),
    "rank": (lambda: call(X[0], X[0], X[0]), r"q has 2 dims \[4, 3\], must have 3: \[B, T, C\]"),
    "heads": (lambda: call(X, X, X.unsqueeze(2)), "v has 4 dims"),
    "other length": (lambda: call(X, X[:, :3], X), r"k has shape \[2, 3, 3\], must be \[B, T, C\] = \[2, 4, 3\]"),
    "other batch": (lambda: call(X, X, X[:1]), r"v has shape \[1, 4, 3\], must be"),
    "other channels": (lambda: call(X, X, X[..., :2]), r"v has shape \[2, 4, 2\], must be"),
    "other dtype": (lambda: call(X, X.double(), X), r"k has dtype float64, must be float32 when q is float32; cast it"),
    "integers": (lambda: call(X.int(), X.int(), X.int()), "q has dtype int32, must be one of float16"),
    "complex": (lambda: call(X.cfloat(), X.cfloat(), X.cfloat()), "q has dtype complex64, must be one of"),
    "other device": (lambda: call(X, X.to("meta"), X), "k is on meta, must be on cpu"),
    "no tensor": (lambda: call(X.numpy()), "q is a ndarray, must be a torch.Tensor"),
    "sparse": (lambda: call(X, X, X.to_sparse()), "v has layout torch.sparse_coo, must be dense"),
    "state of another order": (
        lambda: call(order=2, initial_state=STATE),
        r"A has shape \[2, 3, 7\], must be \[B, C, order\+1\] = \[2, 3, 3\]",
    ),
    "state of another batch": (lambda: call(X[:1], X[:1], X[:1], initial_state=STATE), r"A has shape \[2, 3, 7\]"),
    "state in half precision": (
        lambda: call(initial_state=ops.ElementwiseAttentionState(*[x.half() for x in STATE])),
        "A has dtype float16, must be float32 when q is float32",
    ),
    "no state": (lambda: call(initial_state=X), "initial_state is a Tensor, must be an ElementwiseAttentionState"),
    "shift requires grad": (
        lambda: call(initial_state=STATE._replace(m=STATE.m.clone().requires_grad_())),
        r"m requires grad, must be a constant for differentiation; pass m.detach\(\)",
    ),
    "bidirectional state": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "exact state": (lambda: call(exact=True, initial_state=STATE), "initial_state is set with exact=True"),
    "step of many": (lambda: step(X, state=STATE), r"q has shape \[2, 4, 3\], must be a tensor \[B, C\]"),
    "step without state": (lambda: step(X[0], state=None), "state is a NoneType, must be"),
    "step of another size": (lambda: step(X[0], state=STATE), r"A has shape \[2, 3, 7\]"),
    "state dtype": (lambda: ops.elementwise_attention_init_state(2, 3, dtype=torch.int32), "dtype is torch.int32, must be"),
    "layer order": (lambda: nn.ElementwiseAttention(8, order=5), "order is 5, must be an even integer"),
    "layer size": (lambda: nn.ElementwiseAttention(0), "dim is 0, must be an integer of at least 1"),
    "layer input": (lambda: nn.ElementwiseAttention(8)(X), r"x has shape \[2, 4, 3\], must be \[B, T, D\] with D = 8"),
    "layer step": (lambda: nn.ElementwiseAttention(3, causal=False).step(X[0], STATE), "step is called on .* with causal=False"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
