"""How element-wise attention is measured, and what it must do at least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tilegen.bench.spec import Benchmark, Work


def moments(config: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The moment form as PyTorch runs it fastest: one cumulative sum a moment, which torch.compile fuses with its products.

    Stacking the moments in a last dim (``reference.cumulative``) takes two to five times as long.  It is not shifted by the
    minimum of k^2, which saves it work; k must be below 9.
    """
    order, p, A, B = config.order, (-k * k).exp(), [], []
    for _ in range(order + 1):
        A.append(_total(config, p * v))
        B.append(_total(config, p))
        p = p * k
    a = [config.c2**n / math.factorial(n) for n in range(order + 1)]
    num, den = a[-1] * A[-1], a[-1] * B[-1]
    for n in reversed(range(order)):
        num, den = num * q + a[n] * A[n], den * q + a[n] * B[n]
    return (num / den,)


def _total(config: Any, x: Tensor) -> Tensor:
    return x.cumsum(1) if config.causal else x.sum(1, keepdim=True)


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and writes y.

    An element needs its weight (k^2, minimum, difference and exponential, twice for a running minimum), t - 2 further powers,
    2t + 1 products for 2(t + 1) moments, their sums (with a product each where they are rescaled), two polynomials by
    Horner's rule, and a quotient.
    """
    t, elements = config.order, math.prod(sizes[name] for name in "BTC")
    rescaled = config.causal and config.stabilise
    weight = 6 if rescaled else 4 if config.stabilise else 2
    flops = weight + (t - 2) + (2 * t + 1) + (2 if rescaled else 1) * 2 * (t + 1) + 2 * (3 * t + 1) + 1
    return Work(flops * elements, 4 * elements)


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and dy and writes dq, dk, dv; y and the normaliser can be saved or computed again, so they do not count.

    An element needs the moments again (7t + 9), dq (5t + 2), the reverse sums of a_n q^n dy / E and a_n q^n dy y / E
    (8t + 5), dv (2t + 1) and dk (6t + 8).
    """
    t, elements = config.order, math.prod(sizes[name] for name in "BTC")
    return Work((28 * t + 25) * elements, 7 * elements)


BENCHMARK = Benchmark(
    mechanism="elementwise_attention",
    options=({"order": 2}, {"order": 6}),
    sizes={"B": 4, "T": 2048, "C": 512},
    lengths=(512, 1024, 2048, 4096, 8192),
    peer=moments,
    forward=forward,
    backward=backward,
)
