"""Short-long convolution as one tensor expression (CHELA, Eq. 8)::

    y = K_l * silu(K_s * x)          (K * x)_t = sum_l K_l x_{t-l+r}

with r = 0 when causal and r = (K - 1) / 2, the centre of the kernel, otherwise; x is zero outside of the sequence.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import all_of, compute, const, floordiv, if_then_else, reduce_axis, reduce_sum, silu

Tensor = te.Tensor

UNROLLED = 16
"""Taps that are written out in one sum; more are a reduction."""


def forward(config: Any, dims: Any, x: Tensor, short: Tensor, long: Tensor) -> tuple[Tensor, ...]:
    """`x` [B, T, C], `short` [Ks, C], `long` [Kl, C] -> y [B, T, C]."""
    low = convolve(config, dims, x, short, dims.Ks, "low")
    # In the dtype of x, as it would be between two layers: half the bytes between kernels, and what matrix products take.
    hidden = compute(x.shape, lambda b, t, c: silu(low[b, t, c]).astype(dims.io), name="hidden")
    y = convolve(config, dims, hidden, long, dims.Kl, "filtered")
    return (compute(x.shape, lambda b, t, c: y[b, t, c].astype(dims.io), name="y"),)


def convolve(config: Any, dims: Any, x: Tensor, kernel: Tensor, taps: Any, name: str) -> Tensor:
    """The depthwise convolution of `x` [B, T, C] with `kernel` [taps, C] in the dtype of sums."""
    reach = 0 if config.causal else floordiv(taps - 1, 2)

    def term(b: Any, t: Any, c: Any, tap: Any) -> Any:
        at = t - tap + reach
        exists = at >= 0 if config.causal else all_of(at >= 0, at < dims.T)
        value = if_then_else(exists, x[b, at, c].astype(dims.acc), const(0, dims.acc))
        return kernel[tap, c].astype(dims.acc) * value

    if isinstance(taps, int) and taps <= UNROLLED:

        def written_out(b: Any, t: Any, c: Any) -> Any:
            total = term(b, t, c, 0)
            for tap in range(1, taps):
                total = total + term(b, t, c, tap)
            return total

        return compute(x.shape, written_out, name=name)
    tap = reduce_axis(taps, "tap")
    return compute(x.shape, lambda b, t, c: reduce_sum(term(b, t, c, tap.var), tap), name=name)
