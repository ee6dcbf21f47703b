"""The scan primitive in every kind and variant, against a loop in torch."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.autodiff.compare import Case, check
from tests.autodiff.executor import run
from tilegen.autodiff import gradient
from tilegen.errors import AutodiffError
from tilegen.expression import compute, if_then_else, placeholder, reduce_axis, reduce_sum, scan, stop_gradient

B, T, C = 2, 5, 3
RESET = torch.tensor([0, 0, 1, 0, 1], dtype=torch.int32).reshape(1, T, 1)


def combine(kind, state, x):
    if kind == "sum":
        return x if state is None else state + x
    return x if state is None else torch.logaddexp(state, x)


def loop(kind, reverse, exclusive, roles, reset):
    """The definition of a scan, one step after the other."""

    def reference(x, *rest):
        given = dict(zip(roles, rest, strict=True))
        decay = given["decay"].expand(B, T, C) if "decay" in given else torch.ones(B, T, C, dtype=x.dtype)
        state, steps = given.get("initial"), [None] * T
        for t in reversed(range(T)) if reverse else range(T):
            state = None if reset is not None and reset[0, t, 0] else state
            before = torch.zeros_like(x[:, t]) if state is None else state
            if exclusive:
                steps[t] = before
            state = combine(kind, None if state is None else decay[:, t] * state if kind == "sum" else state, x[:, t])
            if not exclusive:
                steps[t] = state
        return torch.stack(steps, 1)

    return reference


def case(kind="sum", decay=None, reverse=False, exclusive=False, initial=False, reset=False, values=None):
    X, roles, given = placeholder((B, T, C), "float64", "X"), [], {}
    if decay is not None:
        given["decay"] = placeholder(decay, "float64", "decay")
    if initial:
        given["initial"] = placeholder((B, C), "float64", "initial")
    roles = list(given)
    resets = placeholder((1, T, 1), "int32", "reset") if reset else None
    Y = scan(X, axis=1, kind=kind, reset=resets, reverse=reverse, exclusive=exclusive, name="Y", **given)
    step = loop(kind, reverse, exclusive, roles, RESET if reset else None)
    inputs = [X, *given.values(), *([resets] if reset else [])]
    reference = (lambda *a: step(*a[:-1])) if reset else step
    return Case(inputs, [Y], reference, {"reset": RESET} | (values or {}))


@pytest.mark.parametrize(
    "decay",
    [None, (B, T, C), (B, T, 1), (1, T, 1), (1, 1, C), (B, 1, 1)],
    ids=["plain", "full", "row", "scalar", "steady", "steady-row"],
)
def test_sum(decay):
    flags = itertools.product((False, True), repeat=4)
    check(*[case("sum", decay, *chosen) for chosen in flags])


def test_log_sum_exp():
    flags = itertools.product((False, True), repeat=3)
    check(*[case("logsumexp", None, reverse, False, initial, reset) for reverse, initial, reset in flags])


def test_log_sum_exp_over_a_wide_range():
    X = torch.randn(B, T, C, dtype=torch.float64) * 300
    check(case("logsumexp", values={"X": X}))


def test_an_empty_log_sum_exp_has_no_gradient():
    X, G = placeholder((1, 4, 1), "float64", "X"), placeholder((1, 4, 1), "float64", "G")
    Z = scan(X, axis=1, kind="logsumexp", name="Z")
    (dX,) = gradient([Z], [X], [G])
    x = torch.tensor([-float("inf"), -float("inf"), 0.5, 1.0], dtype=torch.float64).reshape(1, 4, 1)
    got = run([X, G], [dX], [x, torch.ones_like(x)])[0].flatten()
    p = torch.sigmoid(torch.tensor(-0.5, dtype=torch.float64))
    assert torch.allclose(got, torch.tensor([0.0, 0.0, 1 + p, 1 - p], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["min", "max"])
def test_a_running_extremum_must_be_stopped(kind):
    X, G = placeholder((2, 5), "float64", "X"), placeholder((2, 5), "float64", "G")
    running = scan(X, axis=1, kind=kind, name="running")
    Y = compute((2, 5), lambda b, t: X[b, t] - running[b, t], "Y")
    with pytest.raises(AutodiffError, match=r"'running'.*stop_gradient"):
        gradient([Y], [X], [G])
    stopped = stop_gradient(running)
    Y = compute((2, 5), lambda b, t: X[b, t] * stopped[b, t], "Y")
    cumulative = {"min": torch.cummin, "max": torch.cummax}[kind]
    check(Case([X], [Y], lambda x: x * cumulative(x, 1).values.detach()))


def test_a_carried_contraction():
    """Linear attention in chunks: the state S <- g S + k^T v before each chunk is an exclusive scan."""
    nc, L, D, E = 3, 4, 9, 10
    q, k = (placeholder((nc, L, D), "float64", name) for name in "qk")
    v, g = placeholder((nc, L, E), "float64", "v"), placeholder((nc, 1, 1), "float64", "g")
    d, j, t, d2 = reduce_axis(D, "d"), reduce_axis(L, "j"), reduce_axis(L, "t"), reduce_axis(D, "d")
    S = compute((nc, L, L), lambda c, i, j: reduce_sum(q[c, i, d] * k[c, j, d], d), "S")
    M = compute((nc, L, L), lambda c, i, j: if_then_else(j <= i, S[c, i, j], 0.0), "M")
    inner = compute((nc, L, E), lambda c, i, e: reduce_sum(M[c, i, j] * v[c, j, e], j), "inner")
    KV = compute((nc, D, E), lambda c, d, e: reduce_sum(k[c, t, d] * v[c, t, e], t), "KV")
    H = scan(KV, axis=0, decay=g, exclusive=True, name="H")
    outer = compute((nc, L, E), lambda c, i, e: reduce_sum(q[c, i, d2] * H[c, d2, e], d2), "outer")
    O = compute((nc, L, E), lambda c, i, e: inner[c, i, e] + outer[c, i, e], "O")

    def reference(q, k, v, g):
        state, rows = torch.zeros(D, E, dtype=q.dtype), []
        for c in range(nc):
            rows.append((q[c] @ k[c].T).tril() @ v[c] + q[c] @ state)
            state = g[c] * state + k[c].T @ v[c]
        return torch.stack(rows)

    check(Case([q, k, v, g], [O], reference))
