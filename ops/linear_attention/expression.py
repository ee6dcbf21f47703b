"""Linear attention as one tensor expression, in chunks of C positions (CHELA; the tiling is that of Lightning Attention-2).

With log-decays g_u <= 0 (0 when there is none)::

    S_t = exp(g_t) S_{t-1} + k_t^T v_t            o_t = scale q_t S_t
    z_t = exp(g_t) z_{t-1} + k_t                  o_t = q_t S_t / q_t z_t         normalised

Inside chunk c, for rows i and columns j <= i, and with the state S_c before the chunk::

    O_c = P_c V_c + r * (Q_c S_c)                 P_ij = q_i k_j exp(g_{j+1} + ... + g_i)
    S_{c+1} = w S_c + (s * K_c)^T V_c             r_i, s_j, w: decay since the start, until the end, of the whole chunk

Nothing but sums of non-positive numbers is ever exponentiated.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import ceildiv, compute, const, floordiv, floormod, if_then_else, reduce_axis, reduce_sum, scan
from tilegen.ops.linear_attention.decay import decay_of

Tensor = te.Tensor


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k` [B, T, H, D], `v` [B, T, H, E] -> o [B, T, H, E], then S [B, H, D, E] and z [B, H, D] as the config asks."""
    Q, K, V = (chunks(config, dims, x) for x in (q, k, v))
    form = causal if config.causal else bidirectional
    numerator, denominator, states = form(config, dims, Q, K, V, **rest)
    scale = dims.D**-0.5 if config.scale is None else config.scale
    C = config.chunk

    def row(b: Any, t: Any, h: Any, e: Any) -> Any:
        c, i = floordiv(t, C), floormod(t, C)
        if denominator is None:
            return (numerator[b, h, c, i, e] * const(scale, dims.acc)).astype(dims.io)
        total, zero = denominator[b, h, c, i], const(0, dims.acc)
        return if_then_else(total != zero, numerator[b, h, c, i, e] / total, zero).astype(dims.io)

    return compute(v.shape, row, name="o"), *states


def causal(
    config: Any,
    dims: Any,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    decay: Tensor | None = None,
    S: Tensor | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Numerators [B, H, nc, C, E], their sums of weights [B, H, nc, C] if wanted, and the final states if wanted."""
    g = decay_of(config, dims, decay)
    square = [*Q.shape[:4], config.chunk]
    d = reduce_axis(dims.D, "d")
    A = compute(square, lambda b, h, c, i, j: reduce_sum(Q[b, h, c, i, d.var] * K[b, h, c, j, d.var], d), name="A")
    P = compute(
        square,
        lambda b, h, c, i, j: if_then_else(j <= i, g.between(A[b, h, c, i, j], b, h, c, i, j), const(0, dims.acc)),
        name="P",
    )
    Ks = compute(K.shape, lambda b, h, c, j, d: g.until_end(K[b, h, c, j, d], b, h, c, j), name="Ks") if g.present else K

    j = reduce_axis(config.chunk, "j")
    inside = compute(V.shape, lambda b, h, c, i, e: reduce_sum(P[b, h, c, i, j.var] * V[b, h, c, j.var, e], j), name="inside")
    added = keys_values(config, Ks, V)
    before = scan(added, axis=2, exclusive=True, decay=g.of_chunk(2), initial=S, name="S_before")
    past = read(dims, Q, before, "past")
    O = compute(V.shape, lambda b, h, c, i, e: inside[b, h, c, i, e] + g.since_start(past[b, h, c, i, e], b, h, c, i), name="O")
    states = [(before, added, g.of_chunk(2))]

    total = None
    if config.normalize:
        u, w = reduce_axis(config.chunk, "u"), reduce_axis(dims.D, "w")
        inner = compute(Q.shape[:4], lambda b, h, c, i: reduce_sum(P[b, h, c, i, u.var], u), name="inner_total")
        more = keys(config, Ks)
        z_before = scan(more, axis=2, exclusive=True, decay=g.of_chunk(1), initial=z, name="z_before")
        outer = compute(
            Q.shape[:4], lambda b, h, c, i: reduce_sum(Q[b, h, c, i, w.var] * z_before[b, h, c, w.var], w), name="past_total"
        )
        total = compute(
            Q.shape[:4], lambda b, h, c, i: inner[b, h, c, i] + g.since_start(outer[b, h, c, i], b, h, c, i), name="total"
        )
        states.append((z_before, more, g.of_chunk(1)))
    return O, total, [after(config, *state) for state in states] if config.return_state else []


def bidirectional(config: Any, dims: Any, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """As `causal`, with the sum over all chunks in place of the state before each."""
    added, (n, m) = keys_values(config, K, V), (reduce_axis(K.shape[2], name) for name in "nm")
    S = compute((dims.B, dims.H, dims.D, dims.E), lambda b, h, d, e: reduce_sum(added[b, h, n.var, d, e], n), name="S")
    # Each chunk reads its own copy, so that the adjoint is a product in each chunk too, and a sum over chunks.
    O, w = read(dims, Q, compute(added.shape, lambda b, h, c, d, e: S[b, h, d, e], name="S_c"), "O"), reduce_axis(dims.D, "w")
    if not config.normalize:
        return O, None, []
    more = keys(config, K)
    z = compute((dims.B, dims.H, dims.D), lambda b, h, d: reduce_sum(more[b, h, m.var, d], m), name="z")
    total = compute(Q.shape[:4], lambda b, h, c, i: reduce_sum(Q[b, h, c, i, w.var] * z[b, h, w.var], w), name="total")
    return O, total, []


def chunks(config: Any, dims: Any, x: Tensor) -> Tensor:
    """[B, T, H, X] as [B, H, nc, C, X] in the dtype of sums, zero beyond T: rows of zeros add nothing."""
    C, T = config.chunk, dims.T
    shape = (dims.B, dims.H, ceildiv(T, C), C, x.shape[3])
    row = lambda b, h, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, h, d].astype(dims.acc), const(0, dims.acc))
    return compute(shape, row, name=x.op.name.upper())


def keys_values(config: Any, K: Tensor, V: Tensor) -> Tensor:
    """K_c^T V_c, what each chunk adds to S."""
    j, (b, h, c, _, d) = reduce_axis(config.chunk, "j"), K.shape
    shape = (b, h, c, d, V.shape[4])
    return compute(shape, lambda b, h, c, d, e: reduce_sum(K[b, h, c, j.var, d] * V[b, h, c, j.var, e], j), name="KV")


def keys(config: Any, K: Tensor) -> Tensor:
    """The sum of the keys of each chunk, what it adds to z."""
    j, (b, h, c, _, d) = reduce_axis(config.chunk, "j"), K.shape
    return compute((b, h, c, d), lambda b, h, c, d: reduce_sum(K[b, h, c, j.var, d], j), name="K_sum")


def read(dims: Any, Q: Tensor, S: Tensor, name: str) -> Tensor:
    """Q_c S_c."""
    d = reduce_axis(dims.D, "d")
    shape = (*Q.shape[:4], S.shape[4])
    return compute(shape, lambda b, h, c, i, e: reduce_sum(Q[b, h, c, i, d.var] * S[b, h, c, d.var, e], d), name=name)


def after(config: Any, before: Tensor, added: Tensor, decay: Tensor | None) -> Tensor:
    """The state after the last chunk from the states before each and what each adds."""
    b, h, nc, *rest = before.shape

    def last(b: Any, h: Any, *x: Any) -> Any:
        kept = before[(b, h, nc - 1, *x)]
        if decay is not None:
            kept = kept * decay[(b if config.decay == "token" else 0, h, nc - 1, *[0] * len(x))]
        return kept + added[(b, h, nc - 1, *x)]

    return compute((b, h, *rest), last, name=f"{before.op.name}_end", axes=["b", "h", "d", "e"][: 2 + len(rest)])
