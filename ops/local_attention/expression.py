"""Local attention as one tensor expression: tiles of C queries against the keys they may see.

With a window of w positions (SeqBoat, section 2.4 of the layer; the kernel of a sliding window)::

    o_i = sum_j w_ij v_j       w_ij = p_ij / sum_j p_ij, p_ij = exp(s_ij - max_j s_ij)      softmax
                               w_ij = relu(s_ij)^2                                          relu2
    s_ij = scale q_i k_j + bias_{j-i}      i - w <= j <= i (causal), i + w (otherwise)

Tile c holds the queries c C + i and the keys c C + j - w, j = 0 .. C + w (+ w): all that any of its queries sees.  Query i of
the tile sees its keys j from i to i + w (+ w), so that j - i is the row of the table of biases.

Where tokens were packed, biases by their distance before that are looked up in another table first, an entry for every pair::

    b_{r,h,m} = table_{h, n},  n = entry_{r,m}      m = 0 .. w (+ w)
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import (
    all_of,
    ceildiv,
    compute,
    const,
    exp,
    floordiv,
    floormod,
    if_then_else,
    maximum,
    minimum,
    reduce_axis,
    reduce_max,
    reduce_sum,
    stop_gradient,
)

Tensor = te.Tensor


def forward(
    config: Any,
    dims: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    **past: Tensor,
) -> tuple[Tensor, ...]:
    """`q`, `k` [B, T, H, D], `v` [B, T, H, E] -> o [B, T, H, E], then the last w keys, values and their count if wanted."""
    C, w, acc = config.chunk, config.window, dims.acc
    Q = queries(config, dims, q)
    K, V = keys(config, dims, k, past.get("k_past")), keys(config, dims, v, past.get("v_past"))
    count = past.get("count")
    square, zero = (*Q.shape[:4], K.shape[3]), const(0, acc)

    d = reduce_axis(dims.D, "d")
    A = compute(square, lambda b, h, c, i, j: reduce_sum(Q[b, h, c, i, d.var] * K[b, h, c, j, d.var], d), name="A")
    scale = const(config.factor(dims.D), acc)
    if bias is None:
        S = compute(square, lambda b, h, c, i, j: A[b, h, c, i, j] * scale, name="S")
    else:
        near = lambda i, j: all_of(j >= i, j <= i + w + config.ahead)  # noqa: E731
        table = lambda b, h, c, i, j: if_then_else(near(i, j), bias[h, j - i], zero)  # noqa: E731
        if config.by_row:
            own = lambda c, i, j: all_of(near(i, j), c * C + i < dims.T)  # noqa: E731
            table = lambda b, h, c, i, j: if_then_else(own(c, i, j), bias[b, c * C + i, h, j - i], zero)  # noqa: E731
        S = compute(square, lambda b, h, c, i, j: A[b, h, c, i, j] * scale + table(b, h, c, i, j), name="S")

    def sees(b: Any, c: Any, i: Any, j: Any) -> Any:
        at = c * C + j - w
        first = at >= 0 if count is None else at >= -count[b]
        near = all_of(j >= i, j <= i + w + config.ahead, first)
        # What a causal query of the sequence sees lies in it; those beyond see zeros, and nobody sees them.
        if config.causal and lengths is None:
            return near
        near = all_of(near, at < dims.T)
        return near if lengths is None else all_of(near, at < lengths[b], c * C + i < lengths[b])

    if config.kind == "softmax":
        m, n = reduce_axis(K.shape[3], "m"), reduce_axis(K.shape[3], "n")
        low, one = const(-1e30, acc), const(1, acc)
        masked = compute(square, lambda b, h, c, i, j: if_then_else(sees(b, c, i, j), S[b, h, c, i, j], low), name="masked")
        top = compute(square[:4], lambda b, h, c, i: reduce_max(masked[b, h, c, i, m.var], m), name="top")
        top = stop_gradient(top)
        P = compute(
            square,
            lambda b, h, c, i, j: if_then_else(sees(b, c, i, j), exp(masked[b, h, c, i, j] - top[b, h, c, i]), zero),
            name="P",
        )
        total = compute(square[:4], lambda b, h, c, i: reduce_sum(P[b, h, c, i, n.var], n), name="total")
        # Rows beyond the sequence may see nothing: they become zeros, not quotients of them. A causal query sees its own key.
        seen = lambda x: x if config.causal and lengths is None else if_then_else(x > zero, x, one)  # noqa: E731
        share = compute(square[:4], lambda b, h, c, i: one / seen(total[b, h, c, i]), name="share")
        # Divided before the product with v: the gradient of the sum then needs no product of its own.
        W = compute(square, lambda b, h, c, i, j: P[b, h, c, i, j] * share[b, h, c, i], name="W")
    else:
        relu = lambda x: maximum(x, zero)  # noqa: E731
        W = compute(
            square,
            lambda b, h, c, i, j: if_then_else(sees(b, c, i, j), relu(S[b, h, c, i, j]) * relu(S[b, h, c, i, j]), zero),
            name="W",
        )

    j = reduce_axis(K.shape[3], "j")
    shape = (*Q.shape[:4], dims.E)
    N = compute(shape, lambda b, h, c, i, e: reduce_sum(W[b, h, c, i, j.var] * V[b, h, c, j.var, e], j), name="N")

    def row(b: Any, t: Any, h: Any, e: Any) -> Any:
        c, i = floordiv(t, C), floormod(t, C)
        return N[b, h, c, i, e].astype(dims.io)

    o = compute(v.shape, row, name="o")
    return (o, *state(config, dims, k, v, **past)) if config.return_state else (o,)


def lookup(config: Any, dims: Any, table: Tensor, entry: Tensor) -> tuple[Tensor, ...]:
    """`table` [H, M], `entry` [R, P] -> rows [R, H, P], zero where there is no such entry."""

    def row(r: Any, h: Any, p: Any) -> Any:
        n = entry[r, p]
        return if_then_else(all_of(n >= 0, n < dims.M), table[h, n], const(0, dims.io))

    return (compute((dims.R, dims.H, dims.P), row, name="rows"),)


def queries(config: Any, dims: Any, x: Tensor) -> Tensor:
    """[B, T, H, X] as tiles [B, H, nc, C, X], zero beyond T."""
    C, T = config.chunk, dims.T
    shape = (dims.B, dims.H, ceildiv(T, C), C, x.shape[3])
    row = lambda b, h, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, h, d].astype(dims.acc), const(0, dims.acc))  # noqa: E731
    return compute(shape, row, name=x.op.name.upper())


def keys(config: Any, dims: Any, x: Tensor, past: Tensor | None) -> Tensor:
    """[B, T, H, X] as overlapping tiles [B, H, nc, w + C (+ w), X]: row j of tile c is position c C + j - w, or of the past."""
    C, w, T, zero = config.chunk, config.window, dims.T, const(0, dims.acc)
    shape = (dims.B, dims.H, ceildiv(T, C), C + w + config.ahead, x.shape[3])

    def row(b: Any, h: Any, c: Any, j: Any, d: Any) -> Any:
        at = c * C + j - w
        before = zero if past is None else past[b, at + w, h, d].astype(dims.acc)
        inside = all_of(at >= 0, at < T)
        value = if_then_else(inside, x[b, c * C + j - w, h, d].astype(dims.acc), zero)
        return value if past is None else if_then_else(at < 0, before, value)

    return compute(shape, row, name=x.op.name.upper())


def state(
    config: Any,
    dims: Any,
    k: Tensor,
    v: Tensor,
    k_past: Tensor | None = None,
    v_past: Tensor | None = None,
    count: Tensor | None = None,
) -> list[Tensor]:
    """The last w rows of keys and values, and their count."""
    w, T = config.window, dims.T

    def rows(x: Tensor, past: Tensor | None) -> Tensor:
        def row(b: Any, m: Any, h: Any, d: Any) -> Any:
            older = const(0, dims.io) if past is None else past[b, T + m, h, d]
            return if_then_else(T - w + m >= 0, x[b, T - w + m, h, d], older)

        return compute((dims.B, w, dims.H, x.shape[3]), row, name=f"{x.op.name}_last")

    def number(b: Any) -> Any:
        return minimum(T if count is None else count[b] + T, const(w, "int32"))

    return [rows(k, k_past), rows(v, v_past), compute((dims.B,), number, name="count_last")]
