"""Fast multipole attention: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import nn, ops
from tilegen.errors import ArgumentError

X = torch.zeros(2, 20, 2, 3)
ROW = X[:, 0]
STATE = ops.fast_multipole_attention_init_state(2, 2, 3, levels=1, block=4, rank=2)
W, B = [torch.zeros(3, 2, 4)], [torch.zeros(3, 2)]
LEARNED = {"k_weights": W, "v_weights": W, "block": 4, "rank": 2}


def call(q: Any = X, k: Any = X, v: Any = X, **options: Any) -> Any:
    return ops.fast_multipole_attention(q, k, v, **{"block": 8, "rank": 2, "levels": 1} | options)


def step(x: Any = ROW, state: Any = STATE, **options: Any) -> Any:
    return ops.fast_multipole_attention_step(x, x, x, state, **options)


CASES = {
    "block zero": (lambda: call(block=0), "block is 0, must be an integer of at least 1"),
    "block text": (lambda: call(block="8", levels=None), "block is '8', must be an integer"),
    "rank zero": (lambda: call(rank=0), "rank is 0, must be an integer of at least 1"),
    "rank of means": (lambda: call(rank=3), "rank is 3, must divide block = 8 when groups are averaged"),
    "levels negative": (lambda: call(levels=-1), "levels is -1, must be an integer between 0 and 20"),
    "levels many": (lambda: call(levels=21), "levels is 21, must be an integer between 0 and 20"),
    "scale": (lambda: call(scale=float("nan")), "scale is nan, must be a finite number"),
    "causal text": (lambda: call(causal="no"), "causal is 'no', must be True or False"),
    "too long": (lambda: call(block=4), r"q has T = 20 tokens, must have at most .* = 16 with levels = 1 and block = 4; raise levels"),
    "too long for weights": (lambda: call(**LEARNED, levels=None), "q has T = 20 tokens, .* pass weights of more levels"),
    "phantoms of both sides": (lambda: call(causal=False, phantom_keys=True), "phantom_keys is set with causal=False"),
    "state of both sides": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "keys only": (lambda: call(X[:, :9], X[:, :9], X[:, :9], **LEARNED | {"v_weights": None}), "v_weights is None, must be a list"),
    "biases only": (lambda: call(k_biases=B), "k_biases is given without weights"),
    "one weight": (lambda: call(**LEARNED | {"k_weights": W[0]}, levels=2), "k_weights is a Tensor, must be a list"),
    "few weights": (lambda: call(**LEARNED, levels=2), "k_weights has 1 tensors, must have one for each of 2 levels"),
    "few biases": (lambda: call(X[:, :9], X[:, :9], X[:, :9], **LEARNED, v_biases=[], levels=1), "v_biases has 0 tensors"),
    "weight shape": (
        lambda: call(X[:, :9], X[:, :9], X[:, :9], **LEARNED | {"v_weights": [W[0][..., :3]]}, levels=1),
        r"v_weights\[0\] has shape \[3, 2, 3\], must be a tensor \[D, rank, w\] = \[3, 2, 4\]",
    ),
    "bias shape": (
        lambda: call(X[:, :9], X[:, :9], X[:, :9], **LEARNED, k_biases=[B[0].T], levels=1),
        r"k_biases\[0\] has shape \[2, 3\], must be a tensor \[D, rank\] = \[3, 2\]",
    ),
    "weight dtype": (
        lambda: call(X[:, :9], X[:, :9], X[:, :9], **LEARNED | {"k_weights": [W[0].double()]}, levels=1),
        "wk1 has dtype float64, must be float32",
    ),
    "no time": (lambda: call(X[:, :0], X[:, :0], X[:, :0]), "T is 0, must be at least 1"),
    "no heads": (lambda: call(X[:, :, :0], X[:, :, :0], X[:, :, :0]), "H is 0, must be at least 1"),
    "rank of q": (lambda: call(X[0]), r"q has 3 dims \[20, 2, 3\], must have 4: \[B, T, H, D\]"),
    "other length": (lambda: call(k=X[:, :3]), r"k has shape \[2, 3, 2, 3\], must be \[B, T, H, D\]"),
    "other heads": (lambda: call(v=X[:, :, :1]), r"v has shape \[2, 20, 1, 3\], must be"),
    "other dtype": (lambda: call(k=X.double()), "k has dtype float64, must be float32 when q is float32"),
    "integers": (lambda: call(X.int(), X.int(), X.int()), "q has dtype int32, must be one of float16"),
    "no tensor": (lambda: call(X.numpy()), "q is a ndarray, must be a torch.Tensor"),
    "other device": (lambda: call(k=X.to("meta")), "k is on meta, must be on cpu"),
    "step of many": (lambda: step(X), r"q has shape \[2, 20, 2, 3\], must be a tensor \[B, H, D\]"),
    "step without state": (lambda: step(state=None), "state is a NoneType, must be a FastMultipoleAttentionState"),
    "step of a wrong state": (lambda: step(state=STATE._replace(near_k=ROW)), "state has near_k"),
    "step of another size": (lambda: step(ROW[:1]), r"near_k has shape \[2, 2, 8, 3\], must be"),
    "step in half precision": (lambda: step(ROW.half()), "near_k has dtype float32, must be float16 when q is float16"),
    "step beyond the levels": (
        lambda: step(state=STATE._replace(position=torch.tensor([16], dtype=torch.int32))),
        r"state has position 16, must be below block 2\^\(levels \+ 1\) = 16; make it with more levels",
    ),
    "position of another type": (
        lambda: step(state=STATE._replace(position=torch.tensor([1]))),
        "position has dtype int64, must be int32",
    ),
    "state dtype": (
        lambda: ops.fast_multipole_attention_init_state(2, 2, 3, levels=1, dtype=torch.int32),
        "dtype is torch.int32, must be one of",
    ),
    "layer heads": (lambda: nn.FastMultipoleAttention(10, 3, levels=1), "heads is 3, must divide dim = 10"),
    "layer size": (lambda: nn.FastMultipoleAttention(0, 1, levels=1), "dim is 0, must be an integer of at least 1"),
    "layer pooling": (lambda: nn.FastMultipoleAttention(8, 2, levels=1, pooling="max"), "pooling is 'max', must be 'learned' or"),
    "layer input": (lambda: nn.FastMultipoleAttention(8, 2, levels=1)(X[0]), r"x has shape \[20, 2, 3\], must be \[B, T, dim\]"),
    "layer step": (
        lambda: nn.FastMultipoleAttention(3, 1, levels=1, causal=False).step(X[0, :, 0], STATE),
        "step is called on a layer with causal=False",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
