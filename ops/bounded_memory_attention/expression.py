"""Attention with bounded-memory control as one tensor expression, in chunks of C positions (ABC; Peng et al., 2022).

A token writes with weights w into N slots, and a query attends to the slots::

    K_i = sum_{j<=i} w_ij (x) k_j        V_i = sum_{j<=i} w_ij (x) v_j        o_i = softmax(scale K_i q_i) V_i

    w_ij = exp(s_j - z_i)  running       exp(s_j - z_j)  fixed       s_j  none       z_i = log sum_{j<=i} exp(s_j)

This is linear attention twice with the softmax over slots between.  With the slots K_c, V_c before chunk c::

    L = A w + r * (Q_c K_c)              A = Q_c K^T below the diagonal, w and r from ``weights.py``
    O = (U w) V + (U * r) V_c            U = exp(scale L - max), divided by its sum at the end

Not causal, z is over the whole sequence and so are the slots; then running and fixed are one.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import (
    ceildiv,
    compute,
    const,
    exp,
    floordiv,
    floormod,
    if_then_else,
    reduce_axis,
    reduce_max,
    reduce_sum,
    scan,
    stop_gradient,
)
from tilegen.ops.bounded_memory_attention.weights import KINDS, written

Tensor = te.Tensor

LOWEST = -1e30
"""Below any logit."""


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, s: Tensor, **state: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k` [B, T, H, D], `v` [B, T, H, E], `s` [B, T, H, N] -> o [B, T, H, E], then K, V and z if the config returns them."""
    Q, K, V = (chunks(config, dims, x, 0.0) for x in (q, k, v))
    S = chunks(config, dims, s, KINDS[config.normalizer].padding)
    form = causal if config.causal else bidirectional
    O, total, states = form(config, dims, Q, K, V, S, state)
    C = config.chunk

    def row(b: Any, t: Any, h: Any, e: Any) -> Any:
        c, i = floordiv(t, C), floormod(t, C)
        zero = const(0, dims.acc)  # no slot holds anything
        return if_then_else(total[b, h, c, i] != zero, O[b, h, c, i, e], zero).astype(dims.io)

    return compute(v.shape, row, name="o"), *states


def causal(
    config: Any, dims: Any, Q: Tensor, K: Tensor, V: Tensor, S: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Numerators [B, H, nc, C, E], sums of weights [B, H, nc, C], and the final states if wanted."""
    weights = KINDS[config.normalizer](config, dims, S, state.get("z"))
    K_c, K_end = before(config, dims, weights, K, state.get("K"), "K")
    V_c, V_end = before(config, dims, weights, V, state.get("V"), "V")

    d, square = reduce_axis(dims.D, "d"), (*Q.shape[:4], config.chunk)
    A = compute(square, lambda b, h, c, i, j: reduce_sum(Q[b, h, c, i, d.var] * K[b, h, c, j, d.var], d), name="A")
    x = reduce_axis(dims.D, "x")
    past = compute(S.shape, lambda b, h, c, i, n: reduce_sum(Q[b, h, c, i, x.var] * K_c[b, h, c, n, x.var], x), name="past")
    logits = weights.logits(A, past)
    L = compute(S.shape, lambda b, h, c, i, n: logits[b, h, c, i, n] * const(scale(config, dims), dims.acc), name="L")

    U, total = softmax(dims, L, weights.present)
    P, R = weights.gather(U)
    j, n = reduce_axis(config.chunk, "j"), reduce_axis(dims.N, "n")
    recent = compute(V.shape, lambda b, h, c, i, e: reduce_sum(P[b, h, c, i, j.var] * V[b, h, c, j.var, e], j), name="recent")
    older = compute(V.shape, lambda b, h, c, i, e: reduce_sum(R[b, h, c, i, n.var] * V_c[b, h, c, n.var, e], n), name="older")
    O = compute(V.shape, lambda b, h, c, i, e: recent[b, h, c, i, e] + older[b, h, c, i, e], name="O")
    return O, total, [K_end, V_end, *weights.last()] if config.return_state else []


def bidirectional(
    config: Any, dims: Any, Q: Tensor, K: Tensor, V: Tensor, S: Tensor, _: dict[str, Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """As `causal`, with slots over the whole sequence."""
    w, count, top = S, None, None
    if config.normalizer != "none":
        w, count, top = shares(config, dims, S)

    def slots(X: Tensor, name: str) -> Tensor:
        (B, H, nc, _, N), size = S.shape, X.shape[4]
        j, c = reduce_axis(config.chunk, "j"), reduce_axis(nc, "c")
        part = lambda b, h, c, n, x: reduce_sum(w[b, h, c, j.var, n] * X[b, h, c, j.var, x], j)
        parts = compute((B, H, nc, N, size), part, name=f"{name}_parts")
        total = compute((B, H, N, size), lambda b, h, n, x: reduce_sum(parts[b, h, c.var, n, x], c), name=f"{name}_sum")
        if count is None:
            return total
        mean = lambda b, h, n, x: if_then_else(
            written(dims, top[b, h, n]), total[b, h, n, x] / count[b, h, n], const(0, dims.acc)
        )
        return compute(total.shape, mean, name=f"{name}_slots")

    keys, values = slots(K, "K"), slots(V, "V")
    d, n = reduce_axis(dims.D, "d"), reduce_axis(dims.N, "n")
    A = compute(S.shape, lambda b, h, c, i, n: reduce_sum(Q[b, h, c, i, d.var] * keys[b, h, n, d.var], d), name="A")
    L = compute(S.shape, lambda b, h, c, i, n: A[b, h, c, i, n] * const(scale(config, dims), dims.acc), name="L")
    U, total = softmax(dims, L, lambda b, h, c, i, n: None if top is None else written(dims, top[b, h, n]))
    O = compute(V.shape, lambda b, h, c, i, e: reduce_sum(U[b, h, c, i, n.var] * values[b, h, n.var, e], n), name="O")
    return O, total, []


def shares(config: Any, dims: Any, S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(s - top), its sum over the sequence [B, H, N], and the maximum top [B, H, N], a constant for differentiation."""
    B, H, nc, C, N = S.shape
    (i, j), (c, m) = (reduce_axis(C, x) for x in "ij"), (reduce_axis(nc, x) for x in "cm")
    high = compute((B, H, nc, N), lambda b, h, c, n: reduce_max(S[b, h, c, i.var, n], i), name="high")
    top = stop_gradient(compute((B, H, N), lambda b, h, n: reduce_max(high[b, h, c.var, n], c), name="top"))
    from_top = lambda b, h, c, i, n: if_then_else(
        written(dims, top[b, h, n]), exp(S[b, h, c, i, n] - top[b, h, n]), const(0, dims.acc)
    )
    w = compute(S.shape, from_top, name="w")
    part = compute((B, H, nc, N), lambda b, h, c, n: reduce_sum(w[b, h, c, j.var, n], j), name="count_part")
    return w, compute((B, H, N), lambda b, h, n: reduce_sum(part[b, h, m.var, n], m), name="count"), top


def softmax(dims: Any, L: Tensor, present: Any) -> tuple[Tensor, Tensor]:
    """exp(L - max) over the slots that are present, and its sum."""
    n, m, zero = reduce_axis(dims.N, "n"), reduce_axis(dims.N, "m"), const(0, dims.acc)

    def where(at: Any, then: Any, otherwise: Any) -> Any:
        condition = present(*at)
        return then if condition is None else if_then_else(condition, then, otherwise)

    low = compute(
        L.shape, lambda *at: where(at, L(*at), const(LOWEST, dims.acc)), name="L_present", axes=["b", "h", "c", "i", "n"]
    )
    rows = L.shape[:4]
    top = stop_gradient(compute(rows, lambda b, h, c, i: reduce_max(low[b, h, c, i, n.var], n), name="L_max"))
    weight = lambda b, h, c, i, n: where((b, h, c, i, n), exp(L[b, h, c, i, n] - top[b, h, c, i]), zero)
    U = compute(L.shape, weight, name="U")
    total = compute(rows, lambda b, h, c, i: reduce_sum(U[b, h, c, i, m.var], m), name="total")
    # Normalised before the second pass: the gradient of L is then p (dp - <p, dp>), which cancels better than that of a quotient.
    share = lambda b, h, c, i, n: if_then_else(total[b, h, c, i] != zero, U[b, h, c, i, n] / total[b, h, c, i], zero)
    return compute(L.shape, share, name="P"), total


def before(config: Any, dims: Any, weights: Any, X: Tensor, initial: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """What the slots hold of X before each chunk, [B, H, nc, N, x], and after the last, [B, H, N, x]."""
    (B, H, nc, _, N), size = weights.S.shape, X.shape[4]
    j, w, g = reduce_axis(config.chunk, "j"), weights.write, weights.of_chunk()
    write = lambda b, h, c, n, x: reduce_sum(w[b, h, c, j.var, n] * X[b, h, c, j.var, x], j)
    added = compute((B, H, nc, N, size), write, name=f"{name}_added")
    slots = scan(added, axis=2, exclusive=True, decay=g, initial=initial, name=f"{name}_before")

    def last(b: Any, h: Any, n: Any, x: Any) -> Any:
        kept = slots[b, h, nc - 1, n, x]
        kept = kept if g is None else kept * g[b, h, nc - 1, n, 0]
        return weights.mean(kept + added[b, h, nc - 1, n, x], b, h, n)

    return slots, compute((B, H, N, size), last, name=f"{name}_end")


def chunks(config: Any, dims: Any, x: Tensor, padding: float) -> Tensor:
    """[B, T, H, X] as [B, H, nc, C, X] in the dtype of sums, `padding` beyond T."""
    C, T = config.chunk, dims.T
    shape = (dims.B, dims.H, ceildiv(T, C), C, x.shape[3])
    pad = const(padding, dims.acc)
    row = lambda b, h, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, h, d].astype(dims.acc), pad)
    return compute(shape, row, name=x.op.name.upper())


def scale(config: Any, dims: Any) -> float:
    """The factor of the logits."""
    return dims.D**-0.5 if config.scale is None else config.scale
