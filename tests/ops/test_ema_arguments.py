"""Multi-head damped EMA: what is refused, in words that name the argument and the remedy.  Nothing here compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen import ops
from tilegen.errors import ArgumentError

X = torch.zeros(2, 4, 3)
P = torch.zeros(3, 2)
OMEGA = torch.zeros(3)
STATE = ops.ema_init_state(2, 3, 2)
BOUNDS = torch.tensor([0, 1, 4], dtype=torch.int32)


def call(x: Any = X, delta: Any = P, alpha: Any = P, beta: Any = P, gamma: Any = P, omega: Any = OMEGA, **options: Any) -> Any:
    return ops.ema(x, delta, alpha, beta, gamma, omega, **options)


def step(x: Any, state: Any = STATE) -> Any:
    return ops.ema_step(x, P, P, P, P, OMEGA, state)


CASES = {
    "no time": (lambda: call(X[:, :0]), "T is 0, must be at least 1"),
    "no averages": (lambda: call(X, *[P[:, :0]] * 4), "N is 0, must be at least 1"),
    "rank": (lambda: call(X[0]), r"x has 2 dims \[4, 3\], must have 3: \[B, T, C\]"),
    "published shape": (lambda: call(X, P.unsqueeze(2)), r"delta has 3 dims \[3, 2, 1\], must have 2"),
    "other channels": (lambda: call(X, P[:2]), r"delta has shape \[2, 2\], must be \[C, N\] = \[3, 2\]"),
    "other orders": (lambda: call(X, P, P[:, :1]), r"alpha has shape \[3, 1\], must be \[C, N\] = \[3, 2\]"),
    "one direction": (lambda: call(causal=False), r"delta has shape \[3, 2\], must be \[2\*C, N\] = \[6, 2\]"),
    "two directions": (lambda: call(X, *[torch.zeros(6, 2)] * 4), r"delta has shape \[6, 2\], must be \[C, N\]"),
    "omega": (lambda: call(omega=P), "omega has 2 dims"),
    "integers": (lambda: call(X.int()), "x has dtype int32, must be one of float16"),
    "integer parameter": (lambda: call(beta=P.int()), "beta has dtype int32, must be float32 when x is float32"),
    "no tensor": (lambda: call(gamma=None), "gamma is a NoneType, must be a torch.Tensor"),
    "other device": (lambda: call(delta=P.to("meta")), "delta is on meta, must be on cpu"),
    "causal text": (lambda: call(causal="yes"), "causal is 'yes', must be True or False"),
    "bidirectional state": (lambda: call(causal=False, return_state=True), "return_state is set with causal=False"),
    "packed state": (lambda: call(X[:1], initial_state=STATE[:1], cu_seqlens=BOUNDS), r"h has shape \[1, 3, 2\], must be \[S, C, N\]"),
    "state of another batch": (lambda: call(initial_state=STATE[:1]), r"h has shape \[1, 3, 2\], must be \[B, C, N\]"),
    "state in half precision": (lambda: call(initial_state=STATE.half()), "h has dtype float16, must be float32"),
    "packed batch": (lambda: call(cu_seqlens=BOUNDS), r"x has shape \[2, 4, 3\], must be \[1, T, ...\] with cu_seqlens"),
    "bounds dtype": (lambda: call(X[:1], cu_seqlens=BOUNDS.long()), "cu_seqlens has dtype int64, must be int32"),
    "bounds shape": (lambda: call(X[:1], cu_seqlens=BOUNDS[:1]), r"cu_seqlens has shape \[1\], must be \[S\+1\]"),
    "bounds list": (lambda: call(X[:1], cu_seqlens=[0, 4]), "cu_seqlens is a list, must be a torch.Tensor"),
    "bounds device": (lambda: call(X[:1], cu_seqlens=BOUNDS.to("meta")), "cu_seqlens is on meta, must be on cpu"),
    "step of many": (lambda: step(X), r"x has shape \[2, 4, 3\], must be a tensor \[B, C\]"),
    "step without state": (lambda: step(X[:, 0], None), "state is a NoneType, must be a tensor"),
    "state dtype": (lambda: ops.ema_init_state(2, 3, 2, dtype=torch.int32), "dtype is torch.int32, must be"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
