"""Symbolic batch, length and chunk count: one adjoint for all sizes, ragged tails included, every read proved."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from tvm import tirx

from tests.autodiff.compare import Case, error, prepare
from tests.autodiff.executor import build
from tilegen.autodiff import unproved_reads
from tilegen.expression import ceildiv, compute, floordiv, floormod, if_then_else, placeholder, reduce_axis, reduce_sum, scan

B, T, C, D, E = tirx.Var("B", "int32"), tirx.Var("T", "int32"), 4, 9, 10


def for_all(case_of, *sizes):
    """One compiled adjoint, compared at several sizes."""
    prepared = prepare(case_of(sizes[0]))
    function = build({"main": prepared.function})["main"]
    for chosen in sizes:
        prepared.case.sizes = chosen
        found = error(prepared, function)
        assert found < 1e-10, f"at {chosen} off by {found:.1e}:\n{prepared.text}"
    return prepared


def linear_attention(sizes):
    """Causal linear attention in chunks of C, T not a multiple of C."""
    nc = ceildiv(T, C)
    q, k, v = (placeholder((B, T, w), "float64", n) for n, w in (("q", D), ("k", D), ("v", E)))

    def chunked(x, name):
        inside = lambda c, t: c * C + t < T
        body = lambda b, c, t, d: if_then_else(inside(c, t), x[b, c * C + t, d], 0.0)
        return compute((B, nc, C, x.shape[2]), body, name)

    qc, kc, vc = chunked(q, "qc"), chunked(k, "kc"), chunked(v, "vc")
    d, j, t, d2 = reduce_axis(D, "d"), reduce_axis(C, "j"), reduce_axis(C, "t"), reduce_axis(D, "d")
    S = compute((B, nc, C, C), lambda b, c, i, j: reduce_sum(qc[b, c, i, d] * kc[b, c, j, d], d), "S")
    M = compute((B, nc, C, C), lambda b, c, i, j: if_then_else(j <= i, S[b, c, i, j], 0.0), "M")
    near = compute((B, nc, C, E), lambda b, c, i, e: reduce_sum(M[b, c, i, j] * vc[b, c, j, e], j), "near")
    KV = compute((B, nc, D, E), lambda b, c, d, e: reduce_sum(kc[b, c, t, d] * vc[b, c, t, e], t), "KV")
    H = scan(KV, axis=1, exclusive=True, name="H")
    far = compute((B, nc, C, E), lambda b, c, i, e: reduce_sum(qc[b, c, i, d2] * H[b, c, d2, e], d2), "far")

    def flat(b, t, e):
        at = (b, floordiv(t, C), floormod(t, C), e)
        return near(*at) + far(*at)

    O = compute((B, T, E), flat, "O")
    return Case([q, k, v], [O], lambda q, k, v: (q @ k.mT).tril() @ v, sizes=sizes)


def test_linear_attention_of_any_length():
    sizes = [{"B": b, "T": t} for b, t in ((2, 11), (1, 12), (3, 1), (1, 3), (2, 4), (1, 17))]
    prepared = for_all(linear_attention, *sizes)
    assert all(note.waste == 1 for note in prepared.adjoint.notes)
    assert not unproved_reads([*prepared.case.outputs, *prepared.adjoint])


def test_masked_reads_inside_a_product():
    def case(sizes):
        k, v, t = placeholder((B, T, D), "float64", "k"), placeholder((B, T, E), "float64", "v"), reduce_axis(C, "t")

        def body(b, c, d, e):
            at = c * C + t
            return reduce_sum(if_then_else(at < T, k[b, at, d] * v[b, at, e], 0.0), t)

        KV = compute((B, ceildiv(T, C), D, E), body, "KV")

        def reference(k, v):
            pad = (0, 0, 0, -k.shape[1] % C)
            k, v = (F.pad(x, pad).unflatten(1, (-1, C)) for x in (k, v))
            return k.mT @ v

        return Case([k, v], [KV], reference, sizes=sizes)

    for_all(case, *[{"B": 2, "T": t} for t in (11, 1, 8)])


def test_scans_with_state_over_a_symbolic_length():
    def case(sizes):
        x, a, s = (placeholder(shape, "float64", n) for n, shape in (("x", (B, T, 3)), ("a", (B, T, 1)), ("s", (B, 3))))
        y = scan(x, axis=1, decay=a, initial=s, name="y")
        z = scan(y, axis=1, kind="logsumexp", initial=s, reverse=True, name="z")

        def reference(x, a, s):
            state, rows = s, []
            for t in range(x.shape[1]):
                state = a[:, t] * state + x[:, t]
                rows.append(state)
            after, out = s, []
            for row in reversed(rows):
                after = torch.logaddexp(after, row)
                out.append(after)
            return torch.stack(out[::-1], 1)

        return Case([x, a, s], [z], reference, sizes=sizes)

    for_all(case, *[{"B": 2, "T": t} for t in (5, 1, 2)])


def test_neighbouring_blocks_with_a_symbolic_count():
    """Query block I reads key blocks I-1 and I."""
    n = tirx.Var("n", "int32")

    def case(sizes):
        q, k, x = placeholder((n, C, D), "float64", "q"), placeholder((n, C, D), "float64", "k"), reduce_axis(D, "x")

        def body(I, a, h, j):
            at = I - 1 + h
            return reduce_sum(if_then_else(at >= 0, q[I, a, x] * k[at, j, x], 0.0), x)

        def reference(q, k):
            before = torch.cat([torch.zeros_like(k[:1]), k[:-1]])
            return torch.stack([torch.einsum("iax,ijx->iaj", q, b) for b in (before, k)], 2)

        return Case([q, k], [compute((n, C, 2, C), body, "S")], reference, sizes=sizes)

    prepared = for_all(case, {"n": 3}, {"n": 1}, {"n": 6})
    assert re.search(r"q_pad\[.*\] float64 = if\(.* < n, q\[", prepared.text)


def test_far_groups_in_pair_coordinates_with_a_symbolic_count():
    n = tirx.Var("n", "int32")

    def case(sizes):
        q, g = placeholder((n, 8, D), "float64", "q"), placeholder((n, 2, D), "float64", "g")
        x = reduce_axis(D, "x")

        def body(P, a, s):
            return reduce_sum(if_then_else(P >= 1, q[P, a, x] * g[P - 1, s, x], 0.0), x)

        def reference(q, g):
            before = torch.cat([torch.zeros_like(g[:1]), g[:-1]])
            return torch.einsum("pax,psx->pas", q, before)

        return Case([q, g], [compute((n, 8, 2), body, "S")], reference, sizes=sizes)

    for_all(case, {"n": 2}, {"n": 1}, {"n": 5})


def test_static_and_symbolic_agree_on_the_adjoint():
    n = tirx.Var("n", "int32")

    def stages(extent):
        x, w, r = placeholder((extent, 4), "float64", "x"), placeholder((4,), "float64", "w"), reduce_axis(4, "r")
        y = compute((extent,), lambda i: reduce_sum(x[i, r] * w[r], r), "y")
        return prepare(Case([x, w], [y], None)).text.replace("n", "?").replace("12", "?")

    assert stages(n) == stages(12)
