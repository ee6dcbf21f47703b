"""The decay of a chunk in log space: constant for a head, or one number a token and head."""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import cast, ceildiv, compute, const, exp, if_then_else, maximum, minimum, scan

Tensor = te.Tensor

LOWEST = {"float32": -110.0, "float64": -750.0}
"""Log-decays below this count as this: its exponential is 0 all the same, and differences of finite sums are defined."""


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
    """Differences of sums over the chunk; beyond T nothing decays, so that the state after the last chunk is that after T."""

    present = True

    def __init__(self, config: Any, dims: Any, decay: Tensor) -> None:
        self.dims, self.C = dims, config.chunk
        C, T = config.chunk, dims.T
        shape = (dims.B, dims.H, ceildiv(T, C), C)
        lowest, zero = LOWEST[dims.acc], const(0, dims.acc)
        g = compute(
            shape, lambda b, h, c, i: if_then_else(c * C + i < T, maximum(decay[b, c * C + i, h], lowest), zero), name="g"
        )
        self.G = scan(g, axis=3, name="G") if C > 1 else g

    def between(self, x: Any, b: Any, h: Any, c: Any, i: Any, j: Any) -> Any:
        return x * exp(self.G[b, h, c, i] - self.G[b, h, c, j])

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any) -> Any:
        return x * exp(self.G[b, h, c, i])

    def until_end(self, x: Any, b: Any, h: Any, c: Any, j: Any) -> Any:
        return x * exp(self.G[b, h, c, self.C - 1] - self.G[b, h, c, j])

    def of_chunk(self, inner: int) -> Tensor:
        shape = (self.dims.B, self.dims.H, ceildiv(self.dims.T, self.C), *[1] * inner)
        return compute(shape, lambda *at: exp(self.G[at[0], at[1], at[2], self.C - 1]), name=f"w{inner}")


def decay_of(config: Any, dims: Any, decay: Tensor | None) -> NoDecay:
    """The decay that the config describes."""
    if decay is None:
        return NoDecay()
    return (HeadDecay if config.decay == "head" else TokenDecay)(config, dims, decay)
