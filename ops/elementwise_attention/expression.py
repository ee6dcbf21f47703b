"""Element-wise attention as one tensor expression.

"Element-wise Attention Is All You Need" (2025), the order-t form, with one channel attending alone::

    y_i = sum_n a_n q_i^n A_n(i) / sum_n a_n q_i^n B_n(i)          a_n = c2^n / n!,  n = 0..t
    A_n(i) = sum_j exp(m_i - k_j^2) k_j^n v_j                      j <= i causal, all j otherwise
    B_n(i) = sum_j exp(m_i - k_j^2) k_j^n                          m_i = min_j k_j^2, which cancels in y

Causal sums are scans; the running minimum m rescales their state by g_i = exp(m_i - m_{i-1}) <= 1.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tilegen.expression import (
    compute,
    const,
    exp,
    if_then_else,
    reduce_axis,
    reduce_max,
    reduce_min,
    reduce_sum,
    scan,
    stop_gradient,
)

Tensor = te.Tensor


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, **state: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k`, `v` [B, T, C] -> y [B, T, C], then A, B [B, C, t+1] and m [B, C] if the config returns the state."""
    q, k, v = (as_acc(x, dims.acc) for x in (q, k, v))
    if config.exact:
        return (exact(config, dims, q, k, v),)
    if state and not config.stabilise:
        state = unshifted(**state)
    k2 = compute(k.shape, lambda b, i, c: k[b, i, c] * k[b, i, c], name="k2")
    weigh = weights_causal if config.causal else weights_bidirectional
    w, g, m = weigh(config, k2, state.get("m"))
    A = sums(config, product(w, v, "wv"), k, g, state.get("A"), "A")
    B = sums(config, w, k, g, state.get("B"), "B")
    y = ratio(config, dims, q, A, B)
    if not config.return_state:
        return (y,)
    last = lambda x, name: compute((dims.B, dims.C), lambda b, c: x[b, dims.T - 1, c], name=name)  # noqa: E731
    ends = [[last(x, f"{x.op.name}_end") for x in moments] for moments in (A, B)]
    m_end = last(m, "m_end") if m is not None else compute((dims.B, dims.C), lambda b, c: const(0, dims.acc), name="m_end")
    return (y, *(stack(dims, xs, name) for xs, name in zip(ends, ("A_end", "B_end"), strict=True)), m_end)


def unshifted(A: Tensor, B: Tensor, m: Tensor) -> dict[str, Tensor]:
    """A state with its moments as they are without stabilisation: sums of exp(-k_j^2) k_j^n."""
    pairs = {"A": A, "B": B}.items()
    return {name: compute(x.shape, lambda b, c, n: x[b, c, n] * exp(-m[b, c]), name=f"{name}_plain") for name, x in pairs}


def weights_causal(config: Any, k2: Tensor, m0: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """w_i = exp(m_i - k_i^2), g_i = exp(m_i - m_{i-1}) and the running minimum m (constant for differentiation)."""
    if not config.stabilise:
        return compute(k2.shape, lambda b, i, c: exp(-k2[b, i, c]), name="w"), None, None
    m = stop_gradient(scan(k2, axis=1, kind="min", initial=m0, name="m"))
    first = (lambda b, i, c: m0[b, c]) if m0 is not None else (lambda b, i, c: m[b, i, c])
    before = lambda b, i, c: if_then_else(i > 0, m[b, i - 1, c], first(b, i, c))  # noqa: E731
    g = compute(k2.shape, lambda b, i, c: exp(m[b, i, c] - before(b, i, c)), name="g")
    w = compute(k2.shape, lambda b, i, c: exp(m[b, i, c] - k2[b, i, c]), name="w")
    return w, g, m


def weights_bidirectional(config: Any, k2: Tensor, _: None) -> tuple[Tensor, None, Tensor | None]:
    """w_i = exp(m - k_i^2) with the minimum m over the whole sequence."""
    if not config.stabilise:
        return compute(k2.shape, lambda b, i, c: exp(-k2[b, i, c]), name="w"), None, None
    batch, time, channels = k2.shape
    j = reduce_axis(time, "j")
    m = stop_gradient(compute((batch, channels), lambda b, c: reduce_min(k2[b, j.var, c], j), name="m"))
    return compute(k2.shape, lambda b, i, c: exp(m[b, c] - k2[b, i, c]), name="w"), None, m


def sums(config: Any, x: Tensor, k: Tensor, g: Tensor | None, initial: Tensor | None, name: str) -> list[Tensor]:
    """The sums of x k^n for every n."""
    found = []
    for n in range(config.order + 1):
        x = product(x, k, f"{name}x_{n}") if n else x
        found.append(total(config, x, g, initial, n, f"{name}_{n}"))
    return found


def total(config: Any, x: Tensor, g: Tensor | None, initial: Tensor | None, n: int, name: str) -> Tensor:
    """A_n or B_n: [B, T, C] running sums when causal, [B, C] sums otherwise."""
    batch, time, channels = x.shape
    if not config.causal:
        j = reduce_axis(time, "j")
        return compute((batch, channels), lambda b, c: reduce_sum(x[b, j.var, c], j), name=name)
    start = None if initial is None else compute((batch, channels), lambda b, c: initial[b, c, n], name=f"{name}_start")
    return scan(x, axis=1, decay=g, initial=start, name=name)


def ratio(config: Any, dims: Any, q: Tensor, A: list[Tensor], B: list[Tensor]) -> Tensor:
    """sum_n a_n q^n A_n / sum_n a_n q^n B_n by Horner's rule."""
    a = [config.c2**n / math.factorial(n) for n in range(config.order + 1)]

    def polynomial(sums: list[Tensor], name: str) -> Tensor:
        at = (lambda x, b, i, c: x[b, i, c]) if config.causal else (lambda x, b, i, c: x[b, c])

        def horner(b: Any, i: Any, c: Any) -> Any:
            value = at(sums[-1], b, i, c) * const(a[-1], dims.acc)
            for x, coefficient in zip(reversed(sums[:-1]), reversed(a[:-1]), strict=True):
                value = value * q[b, i, c] + at(x, b, i, c) * const(coefficient, dims.acc)
            return value

        return compute(q.shape, horner, name=name)

    numerator, denominator = polynomial(A, "numerator"), polynomial(B, "denominator")
    y = compute(q.shape, lambda b, i, c: numerator[b, i, c] / denominator[b, i, c], name="ratio")
    return as_io(y, dims.io)


def exact(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, O(T^2): weights exp(c2 q_i k_j - k_j^2); with c2 = 2 these are exp(-(q_i - k_j)^2) up to a factor of i."""
    size, T = q.shape, dims.T
    sees = (lambda i, j: j <= i) if config.causal else (lambda i, j: j < T)
    logit = lambda b, i, j, c: const(config.c2, dims.acc) * q[b, i, c] * k[b, j, c] - k[b, j, c] * k[b, j, c]  # noqa: E731
    low, zero = const(-1e30, dims.acc), const(0, dims.acc)
    r, s, u = (reduce_axis(T, name) for name in "rsu")
    top = stop_gradient(
        compute(size, lambda b, i, c: reduce_max(if_then_else(sees(i, r.var), logit(b, i, r.var, c), low), r), name="top")
    )
    weight = lambda b, i, j, c: exp(logit(b, i, j, c) - top[b, i, c])  # noqa: E731
    numerator = compute(
        size, lambda b, i, c: reduce_sum(if_then_else(sees(i, s.var), weight(b, i, s.var, c) * v[b, s.var, c], zero), s), name="numerator"
    )
    denominator = compute(size, lambda b, i, c: reduce_sum(if_then_else(sees(i, u.var), weight(b, i, u.var, c), zero), u), name="denominator")
    y = compute(size, lambda b, i, c: numerator[b, i, c] / denominator[b, i, c], name="ratio")
    return as_io(y, dims.io)


def product(x: Tensor, y: Tensor, name: str) -> Tensor:
    """x * y, element by element."""
    return compute(x.shape, lambda b, i, c: x[b, i, c] * y[b, i, c], name=name)


def stack(dims: Any, xs: list[Tensor], name: str) -> Tensor:
    """[B, C] tensors as one [B, C, n]."""

    def pick(b: Any, c: Any, n: Any) -> Any:
        value = xs[-1][b, c]
        for index in reversed(range(len(xs) - 1)):
            value = if_then_else(n == index, xs[index][b, c], value)
        return value

    return compute((dims.B, dims.C, len(xs)), pick, name=name)


def as_acc(x: Tensor, acc: str) -> Tensor:
    """`x` in the dtype of sums and states."""
    return x if str(x.dtype) == acc else compute(x.shape, lambda b, i, c: x[b, i, c].astype(acc), name=f"{x.op.name}_acc")


def as_io(x: Tensor, io: str) -> Tensor:
    """`x` in the caller's dtype: the one rounding."""
    return x if str(x.dtype) == io else compute(x.shape, lambda b, i, c: x[b, i, c].astype(io), name=f"{x.op.name}_io")
