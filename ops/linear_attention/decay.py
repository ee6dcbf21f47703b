"""The decay of a chunk in log space: constant for a head, or one number a token and head."""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import cast, ceildiv, compute, const, exp, if_then_else, maximum, minimum, scan, stop_gradient

Tensor = te.Tensor

LOWEST = {"float32": -110.0, "float64": -750.0}
"""Log-decays below this count as this: its exponential is 0 all the same, and differences of finite sums are defined."""

GRID = 2.0**-9
"""Sums of multiples of this are exact in float32 for up to 256 decays that are not below `LOWEST`."""


class NoDecay:
    """The state only grows."""

    present = False

    def between(self, x: Any, b: Any, h: Any, c: Any, i: Any, j: Any) -> Any:
        """`x` decayed from position j to position i >= j of chunk c."""
        return x

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any) -> Any:
        """`x` decayed from before chunk c to its position i."""
        return x

    def until_end(self, x: Any, b: Any, h: Any, c: Any, j: Any) -> Any:
        """`x` decayed from position j of chunk c to its last one."""
        return x

    def of_chunk(self, inner: int) -> Tensor | None:
        """The decay of each whole chunk, [B, H, nc] with `inner` dims of 1 behind, or None."""
        return None


class HeadDecay(NoDecay):
    """exp(n g_h) over n positions; the last chunk has fewer than C."""

    present = True

    def __init__(self, config: Any, dims: Any, decay: Tensor) -> None:
        self.dims, self.C = dims, config.chunk
        self.g = compute((dims.H,), lambda h: maximum(decay[h], LOWEST[dims.acc]), name="g")

    def over(self, n: Any, h: Any) -> Any:
        """The decay over n positions."""
        return exp(cast(n, self.dims.acc) * self.g[h])

    def length(self, c: Any) -> Any:
        """The number of positions of chunk c."""
        return minimum(self.dims.T - c * self.C, self.C)

    def between(self, x: Any, b: Any, h: Any, c: Any, i: Any, j: Any) -> Any:
        return x * self.over(i - j, h)

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any) -> Any:
        return x * self.over(i + 1, h)

    def until_end(self, x: Any, b: Any, h: Any, c: Any, j: Any) -> Any:
        n = self.length(c)
        return if_then_else(j < n, x * self.over(n - 1 - j, h), const(0, self.dims.acc))

    def of_chunk(self, inner: int) -> Tensor:
        shape = (1, self.dims.H, ceildiv(self.dims.T, self.C), *[1] * inner)
        return compute(shape, lambda *at: self.over(self.length(at[2]), at[1]), name=f"w{inner}")


class TokenDecay(NoDecay):
    """Differences of sums over the chunk; beyond T nothing decays, so that the state after the last chunk is that after T.

    A sum over a chunk is rounded at its own size, however close two positions are whose difference is wanted.  So it comes in two
    parts, whole multiples of `GRID`, whose sums and differences have no error, and what is left of each decay.
    """

    present = True

    def __init__(self, config: Any, dims: Any, decay: Tensor) -> None:
        self.dims, self.C = dims, config.chunk
        C, T = config.chunk, dims.T
        shape = (dims.B, dims.H, ceildiv(T, C), C)
        lowest, zero, grid = LOWEST[dims.acc], const(0, dims.acc), const(GRID, dims.acc)
        g = compute(
            shape, lambda b, h, c, i: if_then_else(c * C + i < T, maximum(decay[b, c * C + i, h], lowest), zero), name="g"
        )
        half, finest = const(0.5, dims.acc), const(1 / GRID, dims.acc)
        whole = stop_gradient(
            compute(shape, lambda *at: cast(cast(g[at] * finest - half, "int32"), dims.acc) * grid, name="g_whole")
        )
        part = compute(shape, lambda *at: g[at] - whole[at], name="g_part")
        self.whole = stop_gradient(scan(whole, axis=3, name="G_whole")) if C > 1 else whole
        self.part = scan(part, axis=3, name="G_part") if C > 1 else part

    def span(self, b: Any, h: Any, c: Any, i: Any, j: Any, later: Any) -> Any:
        """The log-decay from position j to position i of chunk c; nothing, and no sum with its gradient in it, where i is not `later`."""
        part = if_then_else(later, self.part[b, h, c, i] - self.part[b, h, c, j], const(0, self.dims.acc))
        return (self.whole[b, h, c, i] - self.whole[b, h, c, j]) + part

    def upto(self, b: Any, h: Any, c: Any, i: Any) -> Any:
        """The decay from before chunk c to its position i."""
        return exp(self.whole[b, h, c, i] + self.part[b, h, c, i])

    def between(self, x: Any, b: Any, h: Any, c: Any, i: Any, j: Any) -> Any:
        return x * exp(self.span(b, h, c, i, j, j < i))

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any) -> Any:
        return x * self.upto(b, h, c, i)

    def until_end(self, x: Any, b: Any, h: Any, c: Any, j: Any) -> Any:
        return x * exp(self.span(b, h, c, self.C - 1, j, j < minimum(self.dims.T - c * self.C, self.C) - 1))

    def of_chunk(self, inner: int) -> Tensor:
        shape = (self.dims.B, self.dims.H, ceildiv(self.dims.T, self.C), *[1] * inner)
        return compute(shape, lambda *at: self.upto(at[0], at[1], at[2], self.C - 1), name=f"w{inner}")


def decay_of(config: Any, dims: Any, decay: Tensor | None) -> NoDecay:
    """The decay that the config describes."""
    if decay is None:
        return NoDecay()
    return (HeadDecay if config.decay == "head" else TokenDecay)(config, dims, decay)
