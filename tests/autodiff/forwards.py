"""Forward graphs of the size that counts and structures are asked of: products, softmax tiles, scans, windows."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from tilegen.expression import (
    compute,
    exp,
    floordiv,
    if_then_else,
    placeholder,
    reduce_axis,
    reduce_max,
    reduce_sum,
    scan,
    stop_gradient,
)

Graph = tuple[list[te.Tensor], list[te.Tensor]]
"""Arguments and results."""


def tensors(**shapes: Sequence[object]) -> list[te.Tensor]:
    return [placeholder(shape, "float32", name) for name, shape in shapes.items()]


def linear_attention(n=32, C=64, D=64, E=64, decayed=False) -> Graph:
    """Chunks of C tokens, the state before each from an exclusive scan."""
    q, k, v = tensors(q=(n, C, D), k=(n, C, D), v=(n, C, E))
    g = tensors(g=(n, 1, 1)) if decayed else []
    d, j, t, d2 = reduce_axis(D, "d"), reduce_axis(C, "j"), reduce_axis(C, "t"), reduce_axis(D, "d")
    S = compute((n, C, C), lambda c, i, j: reduce_sum(q[c, i, d] * k[c, j, d], d), "S")
    M = compute((n, C, C), lambda c, i, j: if_then_else(j <= i, S[c, i, j], 0.0), "M")
    near = compute((n, C, E), lambda c, i, e: reduce_sum(M[c, i, j] * v[c, j, e], j), "near")
    KV = compute((n, D, E), lambda c, d, e: reduce_sum(k[c, t, d] * v[c, t, e], t), "KV")
    H = scan(KV, axis=0, decay=g[0] if decayed else None, exclusive=True, name="H")
    far = compute((n, C, E), lambda c, i, e: reduce_sum(q[c, i, d2] * H[c, d2, e], d2), "far")
    return [q, k, v, *g], [compute((n, C, E), lambda c, i, e: near[c, i, e] + far[c, i, e], "O")]


def softmax_attention(n=64, m=128, D=64, E=64) -> Graph:
    """A tile of queries against a tile of keys, the maximum a constant for differentiation."""
    q, k, v = tensors(q=(n, D), k=(m, D), v=(m, E))
    d, j1, j2, j3 = reduce_axis(D, "d"), reduce_axis(m, "j"), reduce_axis(m, "j"), reduce_axis(m, "j")
    L = compute((n, m), lambda i, j: reduce_sum(q[i, d] * k[j, d], d), "L")
    top = stop_gradient(compute((n,), lambda i: reduce_max(L[i, j1], j1), "top"))
    P = compute((n, m), lambda i, j: exp(L[i, j] * 0.125 - top[i] * 0.125), "P")
    den = compute((n,), lambda i: reduce_sum(P[i, j2], j2), "den")
    num = compute((n, E), lambda i, e: reduce_sum(P[i, j3] * v[j3, e], j3), "num")
    return [q, k, v], [compute((n, E), lambda i, e: num[i, e] / den[i], "O")]


def moments(T=64, C=16, order=2) -> Graph:
    """Element-wise attention of a small order: one scan for each moment."""
    q, k, v = tensors(q=(T, C), k=(T, C), v=(T, C))
    w = compute((T, C), lambda t, c: exp(-(k[t, c] * k[t, c])), "w")
    A, B = [], []
    for m in range(order + 1):
        last = B[-1] if B else None
        b = w if last is None else compute((T, C), lambda t, c: last[t, c] * k[t, c], f"kw{m}")
        a = compute((T, C), lambda t, c: b[t, c] * v[t, c], f"kwv{m}")
        B.append(b)
        A.append(scan(a, axis=0, name=f"A{m}"))
    sums = [scan(b, axis=0, name=f"B{m}") for m, b in enumerate(B)]

    def horner(states):
        def body(t, c):
            value = states[-1][t, c]
            for m in reversed(range(order)):
                value = value * q[t, c] * (2.0 / (m + 1)) + states[m][t, c]
            return value

        return body

    N, D = compute((T, C), horner(A), "N"), compute((T, C), horner(sums), "D")
    return [q, k, v], [compute((T, C), lambda t, c: N[t, c] / D[t, c], "y")]


def short_convolution(T=256, C=32, K=4) -> Graph:
    x, w, r = *tensors(x=(T, C), w=(C, K)), reduce_axis(K, "r")
    return [x, w], [compute((T, C), lambda t, c: reduce_sum(if_then_else(t - r >= 0, w[c, r] * x[t - r, c], 0.0), r), "y")]


def far_field(n=16, m=64, p=4, D=64, level=2) -> Graph:
    """Query blocks against pooled groups of blocks, in pair coordinates."""
    width = m * 2 ** (level - 1)
    q, k, W = tensors(q=(n, m, D), k=(n * m, D), W=(D, p, width))
    u, x = reduce_axis(width, "u"), reduce_axis(D, "x")
    G = n * m // width
    ks = compute((G, p, D), lambda g, s, c: reduce_sum(W[c, s, u] * k[g * width + u, c], u), "ks")
    group = lambda I, g: floordiv(I, 2**level) * 2 - 2 + g

    def body(I, a, g, s):
        return reduce_sum(if_then_else(group(I, g) >= 0, q[I, a, x] * ks[group(I, g), s, x], 0.0), x)

    return [q, k, W], [compute((n, m, 2, p), body, "L")]


def log_scan(T=64, C=8) -> Graph:
    x = tensors(x=(T, C))[0]
    return [x], [scan(x, axis=0, kind="logsumexp", name="z")]


def decayed_scan(T=64, C=8) -> Graph:
    x, a = tensors(x=(T, C), a=(T, 1))
    return [x, a], [scan(x, axis=0, decay=a, name="y")]
