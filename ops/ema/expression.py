"""Multi-head damped EMA as one tensor expression.

"Mega: Moving Average Equipped Gated Attention" (Ma et al., 2022), section 3, in the form of SeqBoat; every channel c has N averages::

    q_n = 1 - p_n sigma(alpha_n)        p_n = sigma(delta_n)        w_n = p_n beta_n gamma_n N^-1/2
    h_n(t) = q_n h_n(t-1) + x(t)
    y(t) = sum_n w_n h_n(t) + omega x(t)

so that the kernel at lag l is sum_n w_n q_n^l, which is never formed: a scan has no q^l to underflow.  The bidirectional
form adds the same sum with scans from the end and parameters of its own; lag 0 is in both.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import compute, const, if_then_else, scan, sigmoid

Tensor = te.Tensor


def forward(
    config: Any, dims: Any, x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor, h: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`x` [B, T, C], `delta`, `alpha`, `beta`, `gamma` [C, N] (rows C.. run from the end), `omega` [C] -> y, and h [B, C, N]."""
    io = str(x.dtype)
    x = as_dtype(x, dims.acc)
    skip = spread(dims, omega, "omega_b")
    y = compute(x.shape, lambda b, t, c: skip[b, c] * x[b, t, c], name="skip")
    states: list[Tensor] = []
    for reverse in [False] if config.causal else [False, True]:
        first, side = (dims.C, "r") if reverse else (0, "")
        q, w = coefficients(dims, first, delta, alpha, beta, gamma, side)
        # A copy for each direction: what its averages send back to x is then summed in one walk.
        own = compute(x.shape, lambda b, t, c: x[b, t, c], name=f"x{side}")
        states = [
            scan(own, axis=1, decay=q[n], initial=initial(dims, h, n), reverse=reverse, name=f"h{side}_{n}") for n in range(dims.N)
        ]
        y = weighted(y, w, states, f"y{side}")
    y = as_dtype(y, io)
    if not config.return_state:
        return (y,)
    return y, last(dims, states)


def coefficients(
    dims: Any, first: int, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, side: str
) -> tuple[list[Tensor], list[Tensor]]:
    """q_n [1, 1, C] and w_n [B, C] for every n, from the C rows of the parameters that begin at `first`."""
    one, root = const(1, dims.acc), const(dims.N**-0.5, dims.acc)
    # [N, C]: channels are next to each other in the walks.
    p = compute((dims.N, dims.C), lambda n, c: sigmoid(delta[first + c, n]), name=f"p{side}")
    q = compute(p.shape, lambda n, c: one - p[n, c] * sigmoid(alpha[first + c, n]), name=f"q{side}")
    w = compute(p.shape, lambda n, c: p[n, c] * beta[first + c, n] * gamma[first + c, n] * root, name=f"w{side}")
    decays = [compute((1, 1, dims.C), lambda b, t, c, n=n: q[n, c], name=f"q{side}_{n}") for n in range(dims.N)]
    rows = [compute((dims.C,), lambda c, n=n: w[n, c], name=f"w{side}_{n}_row") for n in range(dims.N)]
    return decays, [spread(dims, row, f"w{side}_{n}") for n, row in enumerate(rows)]


def spread(dims: Any, row: Tensor, name: str) -> Tensor:
    """A value of each channel as [B, C], so that its gradient is summed over time first and over the batch after that."""
    return compute((dims.B, dims.C), lambda b, c: row[c], name=name)


def weighted(y: Tensor, w: list[Tensor], states: list[Tensor], name: str) -> Tensor:
    """y + sum_n w_n h_n."""

    def body(b: Any, t: Any, c: Any) -> Any:
        value = y[b, t, c]
        for gain, h in zip(w, states, strict=True):
            value = value + gain[b, c] * h[b, t, c]
        return value

    return compute(y.shape, body, name=name)


def initial(dims: Any, h: Tensor | None, n: int) -> Tensor | None:
    """The n-th average before position 0."""
    return None if h is None else compute((dims.B, dims.C), lambda b, c: h[b, c, n], name=f"h_{n}_start")


def last(dims: Any, states: list[Tensor]) -> Tensor:
    """The averages after the last position as one [B, C, N]."""
    ends = [compute((dims.B, dims.C), lambda b, c, h=h: h[b, dims.T - 1, c], name=f"{h.op.name}_end") for h in states]

    # A sum, not a chain of choices: each gradient then has one condition, and is a read of one place.
    def pick(b: Any, c: Any, n: Any) -> Any:
        own = [if_then_else(n == index, end[b, c], const(0, dims.acc)) for index, end in enumerate(ends)]
        return sum(own[1:], own[0])

    return compute((dims.B, dims.C, dims.N), pick, name="h_end")


def as_dtype(x: Tensor, dtype: str) -> Tensor:
    """`x` in another dtype: sums and states in the wide one, one rounding at the end."""
    return x if str(x.dtype) == dtype else compute(x.shape, lambda b, t, c: x[b, t, c].astype(dtype), name=f"{x.op.name}_{dtype}")
