"""Linear attention: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops.linear_attention import Config

K = torch.zeros(2, 4, 3, 5)
V = torch.zeros(2, 4, 3, 6)
S = ops.linear_attention_init_state(2, 3, 5, 6)
PAIR = ops.linear_attention_init_state(2, 3, 5, 6, normalize=True)
ROW, VALUE = K[:, 0], V[:, 0]


def call(q: Any = K, k: Any = K, v: Any = V, **options: Any) -> Any:
    return ops.linear_attention(q, k, v, **options)


def step(state: Any, q: Any = ROW, **options: Any) -> Any:
    return ops.linear_attention_step(q, ROW, VALUE, state, **options)


CASES = {
    "causal text": (lambda: call(causal="yes"), "causal is 'yes', must be True or False"),
    "normalize number": (lambda: call(normalize=1), "normalize is 1, must be True or False"),
    "scale infinite": (lambda: call(scale=float("inf")), "scale is inf, must be a finite number"),
    "scale text": (lambda: call(scale="1"), "scale is '1', must be a finite number"),
    "chunk zero": (lambda: call(chunk=0), "chunk is 0, must be an integer of at least 1"),
    "chunk fraction": (lambda: call(chunk=1.5), "chunk is 1.5, must be an integer"),
    "unknown decay": (lambda: Config(decay="channel"), "decay is 'channel', must be one of none, head, token"),
    "no time": (lambda: call(K[:, :0], K[:, :0], V[:, :0]), "T is 0, must be at least 1"),
    "no heads": (lambda: call(K[:, :, :0], K[:, :, :0], V[:, :, :0]), "H is 0, must be at least 1"),
    "rank": (lambda: call(K[0], K[0], V[0]), r"q has 3 dims \[4, 3, 5\], must have 4: \[B, T, H, D\]"),
    "other length": (lambda: call(K, K[:, :3]), r"k has shape \[2, 3, 3, 5\], must be \[B, T, H, D\] = \[2, 4, 3, 5\]"),
    "other heads": (lambda: call(v=V[:, :, :2]), r"v has shape \[2, 4, 2, 6\], must be"),
    "other key size": (lambda: call(k=K[..., :4]), r"k has shape \[2, 4, 3, 4\], must be"),
    "other dtype": (lambda: call(v=V.double()), "v has dtype float64, must be float32 when q is float32; cast it"),
    "integers": (lambda: call(K.int(), K.int(), V.int()), "q has dtype int32, must be one of float16"),
    "other device": (lambda: call(k=K.to("meta")), "k is on meta, must be on cpu"),
    "no tensor": (lambda: call(K.numpy()), "q is a ndarray, must be a torch.Tensor"),
    "decay of a number": (lambda: call(decay=-0.1), r"decay is a float, must be a tensor \[H\] or \[B, T, H\]"),
    "decay per batch": (lambda: call(decay=K[:, :, 0, 0]), r"decay has shape \[2, 4\], must be a tensor \[H\] or \[B, T, H\]"),
    "decay of other heads": (lambda: call(decay=torch.zeros(2)), r"decay has shape \[2\], must be \[H\] = \[3\]"),
    "decay of other length": (lambda: call(decay=torch.zeros(2, 3, 3)), r"decay has shape \[2, 3, 3\], must be \[B, T, H\]"),
    "decay in half precision": (lambda: call(decay=torch.zeros(3).half()), "decay has dtype float16, must be float32"),
    "bidirectional decay": (lambda: call(causal=False, decay=torch.zeros(3)), "decay is set with causal=False"),
    "bidirectional state": (lambda: call(causal=False, initial_state=S), "initial_state is set with causal=False"),
    "bidirectional end": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "state of another batch": (lambda: call(initial_state=S[:1]), r"S has shape \[1, 3, 5, 6\], must be \[B, H, D, E\]"),
    "state turned": (lambda: call(initial_state=S.mT), r"S has shape \[2, 3, 6, 5\], must be"),
    "state in half precision": (lambda: call(initial_state=S.half()), "S has dtype float16, must be float32 when q is float32"),
    "pair without normaliser": (lambda: call(initial_state=PAIR), "initial_state is a LinearAttentionState, must be a tensor S"),
    "normaliser without pair": (
        lambda: call(normalize=True, initial_state=S),
        r"initial_state is a Tensor, must be a LinearAttentionState \(S, z\) with normalize=True",
    ),
    "normaliser of another size": (
        lambda: call(normalize=True, initial_state=PAIR._replace(z=PAIR.z[..., :4])),
        r"z has shape \[2, 3, 4\], must be \[B, H, D\] = \[2, 3, 5\]",
    ),
    "step of many": (lambda: step(S, K), r"q has shape \[2, 4, 3, 5\], must be a tensor \[B, H, X\], one position"),
    "step without state": (lambda: step(None), "state is a NoneType, must be a LinearAttentionState"),
    "step of another size": (lambda: step(S[..., :5]), r"S has shape \[2, 3, 5, 5\], must be \[B, H, D, E\]"),
    "step with decays of tokens": (lambda: step(S, decay=K[..., 0]), r"decay has shape \[2, 4, 3\], must be a tensor \[H\] or \[B, H\]"),
    "state dtype": (lambda: ops.linear_attention_init_state(2, 3, 5, 6, dtype=torch.int32), "dtype is torch.int32, must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()


def test_a_positive_decay_is_refused_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEGEN_DEBUG", "1")
    with pytest.raises(ArgumentError, match=r"decay has values above 0, up to 0\.5; it is a logarithm"):
        call(decay=torch.tensor([0.0, 0.5, -1.0]))
