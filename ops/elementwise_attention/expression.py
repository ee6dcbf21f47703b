"""Element-wise attention as one tensor expression.

Element-wise Attention Is All You Need (Feng, 2025), the order-t form::

    y_i = sum_n a_n q_i^n A_n(i) / sum_n a_n q_i^n B_n(i)          a_n = c2^n / n!,  n = 0..t
    A_n(i) = sum_j exp(m_i - k_j^2) k_j^n v_j                      j <= i causal, all j otherwise
    B_n(i) = sum_j exp(m_i - k_j^2) k_j^n                          m_i = min k_j^2, which cancels in y

Causal sums are scans in which the running minimum m rescales the state by exp(m_i - m_{i-1}) <= 1.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tilegen.expression import compute, const, exp, if_then_else, reduce_axis, reduce_min, reduce_sum, scan, stop_gradient

Tensor = te.Tensor


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, **state: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k`, `v` [B, T, C] -> y [B, T, C], and (A, B [B, C, t+1], m [B, C]) when the config returns the state."""
    B, T, C, t = dims.B, dims.T, dims.C, config.order
    io, acc = str(q.dtype), dims.acc
    one, zero = const(1, acc), const(0, acc)
    qf, kf, vf = (compute((B, T, C), lambda b, i, c: x[b, i, c].astype(acc), name=x.op.name + "f") for x in (q, k, v))
    k2 = compute((B, T, C), lambda b, i, c: kf[b, i, c] * kf[b, i, c], name="k2")

    if config.initial_state:
        A0, B0 = ([compute((B, C), lambda b, c: s[b, c, n], name=f"{nm}0_{n}") for n in range(t + 1)]
                  for nm, s in (("A", state["A"]), ("B", state["B"])))
        m0 = state["m"]
    else:
        A0, B0, m0 = [None] * (t + 1), [None] * (t + 1), None

    # m and the two factors that contain it: w_j = exp(m - k_j^2), g_i = exp(m_i - m_{i-1})
    g = None
    if not config.stabilise:
        w = compute((B, T, C), lambda b, i, c: exp(-k2[b, i, c]), name="w")
    elif config.causal:
        m = stop_gradient(scan(k2, axis=1, kind="min", initial=m0, name="m"))
        before = (lambda b, c: m0[b, c]) if m0 is not None else (lambda b, c: m[b, 0, c])
        g = compute((B, T, C), lambda b, i, c: if_then_else(i > 0, exp(m[b, i, c] - m[b, i - 1, c]), exp(m[b, i, c] - before(b, c))), name="g")
        w = compute((B, T, C), lambda b, i, c: exp(m[b, i, c] - k2[b, i, c]), name="w")
    else:
        j = reduce_axis(T, "j")
        m = stop_gradient(compute((B, C), lambda b, c: reduce_min(k2[b, j, c], axis=j), name="m"))
        w = compute((B, T, C), lambda b, i, c: exp(m[b, c] - k2[b, i, c]), name="w")
    return t, one, zero, io, qf, vf, w, g, A0, B0, m0, math, reduce_sum
