"""The weights with which tokens are written into slots, seen from the rows of a chunk.

z is the logarithm of the sum of exp(s) so far, slot by slot; it only grows, so no difference below is positive::

    z_i = log(exp(zb) + sum_{j<=i} exp(s_j))        zb: before the chunk, ze: after it

A slot that nothing was written to has z = -inf: it is guarded wherever it is read, and takes no part in attention.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import all_of, cast, compute, const, exp, if_then_else, reduce_axis, reduce_sum, scan

Tensor = te.Tensor

EMPTY = float("-inf")


def written(dims: Any, z: Any) -> Any:
    """Whether a slot with log-normaliser `z` holds anything."""
    return cast(z, dims.acc) != const(EMPTY, dims.acc)


def share(dims: Any, term: Any, z: Any) -> Any:
    """exp(term - z), the part of exp(z) that exp(term) is; 0 of nothing."""
    return if_then_else(written(dims, z), exp(term - z), const(0, dims.acc))


class NoNormalizer:
    """A slot sums s_j k_j and s_j v_j."""

    padding = 0.0
    """What stands for s beyond T: nothing is written there."""

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        self.config, self.dims, self.S = config, dims, S
        self.row = S.shape[:4]
        self.write = S

    def spread(self, A: Tensor) -> Tensor:
        """Slot n of row i from the columns j <= i: sum_j A_ij w_jn."""
        j, zero = reduce_axis(self.config.chunk, "j"), const(0, self.dims.acc)
        below = compute(A.shape, lambda b, h, c, i, j: if_then_else(j <= i, A[b, h, c, i, j], zero), name="A_below")
        w = self.write
        return compute(self.S.shape, lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j), name="inside")

    def gather(self, U: Tensor) -> Tensor:
        """Column j <= i of row i from the slots: sum_n U_in w_jn."""
        n, zero, w = reduce_axis(self.dims.N, "n"), const(0, self.dims.acc), self.write
        square = (*self.row, self.config.chunk)
        G = compute(square, lambda b, h, c, i, j: reduce_sum(U[b, h, c, i, n.var] * w[b, h, c, j, n.var], n), name="G")
        return compute(square, lambda b, h, c, i, j: if_then_else(j <= i, G[b, h, c, i, j], zero), name="G_below")

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        """`x` of slot n before chunk c as row i of the chunk sees it."""
        return x

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        """Whether row i attends to slot n, or None for always."""
        return None

    def of_chunk(self) -> Tensor | None:
        """What a chunk leaves of the slots before it, [B, H, nc, N, 1], or None for all."""
        return None

    def last(self) -> list[Tensor]:
        """The normaliser after the last chunk, if there is one."""
        return []


class Normalizer(NoNormalizer):
    """What "running" and "fixed" have in common: the log-normaliser z."""

    padding = EMPTY

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        super().__init__(config, dims, S, z0)
        C, (B, H, nc, _, N) = config.chunk, S.shape
        within = scan(S, axis=3, kind="logsumexp", name="z_within")
        own = compute((B, H, nc, N), lambda b, h, c, n: within[b, h, c, C - 1, n], name="z_own")
        ze = scan(own, axis=2, kind="logsumexp", initial=z0, name="ze")
        first = (lambda b, h, n: z0[b, h, n]) if z0 is not None else (lambda b, h, n: const(EMPTY, dims.acc))
        before = lambda b, h, c, n: if_then_else(c > 0, ze[b, h, c - 1, n], first(b, h, n))
        self.zb = compute(own.shape, before, name="zb")
        self.z = scan(S, axis=3, kind="logsumexp", initial=self.zb, name="z")
        self.ze = ze

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        return written(self.dims, self.z[b, h, c, i, n])

    def last(self) -> list[Tensor]:
        B, H, nc, N = self.ze.shape
        return [compute((B, H, N), lambda b, h, n: self.ze[b, h, nc - 1, n], name="z_end")]


class Fixed(Normalizer):
    """A token's weight is its share of the past at the time of writing, phi_j = exp(s_j - z_j), for ever."""

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        super().__init__(config, dims, S, z0)
        self.write = compute(S.shape, lambda b, h, c, j, n: share(dims, S[b, h, c, j, n], self.z[b, h, c, j, n]), name="phi")


class Running(Normalizer):
    """A token's weight is its share of the past as row i sees it, E_ijn = exp(s_jn - z_in)."""

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        super().__init__(config, dims, S, z0)
        z, ze, zero = self.z, self.ze, const(0, dims.acc)

        def weight(b: Any, h: Any, c: Any, i: Any, j: Any, n: Any) -> Any:
            seen = all_of(j <= i, written(dims, z[b, h, c, i, n]))
            return if_then_else(seen, exp(S[b, h, c, j, n] - z[b, h, c, i, n]), zero)

        self.E = compute((*self.row, config.chunk, dims.N), weight, name="E")
        self.r = compute(S.shape, lambda b, h, c, i, n: share(dims, self.zb[b, h, c, n], z[b, h, c, i, n]), name="r")
        self.write = compute(S.shape, lambda b, h, c, j, n: share(dims, S[b, h, c, j, n], ze[b, h, c, n]), name="w")

    def spread(self, A: Tensor) -> Tensor:
        j, E = reduce_axis(self.config.chunk, "j"), self.E
        return compute(
            self.S.shape, lambda b, h, c, i, n: reduce_sum(A[b, h, c, i, j.var] * E[b, h, c, i, j.var, n], j), name="inside"
        )

    def gather(self, U: Tensor) -> Tensor:
        n, E = reduce_axis(self.dims.N, "n"), self.E
        square = (*self.row, self.config.chunk)
        return compute(square, lambda b, h, c, i, j: reduce_sum(U[b, h, c, i, n.var] * E[b, h, c, i, j, n.var], n), name="G")

    def since_start(self, x: Any, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        return x * self.r[b, h, c, i, n]

    def of_chunk(self) -> Tensor:
        shape = (*self.zb.shape, 1)
        return compute(shape, lambda b, h, c, n, x: share(self.dims, self.zb[b, h, c, n], self.ze[b, h, c, n]), name="g")


KINDS = {"running": Running, "fixed": Fixed, "none": NoNormalizer}
