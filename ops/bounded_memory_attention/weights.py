"""The weights with which tokens are written into slots, seen from the rows of a chunk.

z is the logarithm of the sum of exp(s) so far, slot by slot; it only grows, so no difference below is positive::

    z_i = log(exp(zb) + sum_{j<=i} exp(s_j))        zb: before the chunk, ze: after it

A slot that nothing was written to has z = -inf: it is guarded wherever it is read, and takes no part in attention.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import (
    all_of,
    cast,
    compute,
    const,
    exp,
    if_then_else,
    log,
    maximum,
    reduce_axis,
    reduce_max,
    reduce_min,
    reduce_sum,
    scan,
    stop_gradient,
)

Tensor = te.Tensor

EMPTY = float("-inf")

SMALL = {"float16": 2.0**-12, "bfloat16": 1e-17, "float32": 1e-17, "float64": 1e-17}
"""The least exp(start - top) of a chunk for which exp(top - start), its products and its square are far from overflow."""


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

    def logits(self, A: Tensor, past: Tensor) -> Tensor:
        """What row i has in slot n: sum_{j<=i} A_ij w_jn, and `past` from the slots before the chunk."""
        j, zero = reduce_axis(self.config.chunk, "j"), const(0, self.dims.acc)
        below = compute(A.shape, lambda b, h, c, i, j: if_then_else(j <= i, A[b, h, c, i, j], zero), name="A_below")
        w = self.write
        inside = compute(
            self.S.shape, lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j), name="inside"
        )
        return compute(self.S.shape, lambda b, h, c, i, n: inside[b, h, c, i, n] + past[b, h, c, i, n], name="L_sum")

    def gather(self, U: Tensor) -> tuple[Tensor, Tensor]:
        """What row i takes of column j <= i, sum_n U_in w_jn, and of slot n before the chunk."""
        n, zero, w = reduce_axis(self.dims.N, "n"), const(0, self.dims.acc), self.write
        square = (*self.row, self.config.chunk)
        G = compute(square, lambda b, h, c, i, j: reduce_sum(U[b, h, c, i, n.var] * w[b, h, c, j, n.var], n), name="G")
        return compute(square, lambda b, h, c, i, j: if_then_else(j <= i, G[b, h, c, i, j], zero), name="G_below"), U

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        """Whether row i attends to slot n, or None for always."""
        return None

    def of_chunk(self) -> Tensor | None:
        """What a chunk leaves of the slots before it, [B, H, nc, N, 1], or None for all."""
        return None

    def mean(self, total: Any, b: Any, h: Any, n: Any) -> Any:
        """What slot n holds after the last chunk, given its sum."""
        return total

    def last(self) -> list[Tensor]:
        """The normaliser after the last chunk, if there is one."""
        return []


class Fixed(NoNormalizer):
    """A token's weight is its share of the past at the time of writing, phi_j = exp(s_j - z_j), for ever."""

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
        self.write = compute(S.shape, lambda b, h, c, j, n: share(dims, S[b, h, c, j, n], self.z[b, h, c, j, n]), name="phi")

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        return written(self.dims, self.z[b, h, c, i, n])

    def last(self) -> list[Tensor]:
        B, H, nc, N = self.ze.shape
        return [compute((B, H, N), lambda b, h, n: self.ze[b, h, nc - 1, n], name="z_end")]


class Running(NoNormalizer):
    """A token's weight is its share of the past as row i sees it, a quotient of sums of exp(s - top).

    What a chunk hands on is seen from top, the largest s up to its end, so that everything is at most 1.  Its own rows see it from
    start, the largest s up to its first row, so that no row depends on later ones, not even in its last bit, and all sums are at
    least 1.  A chunk in which s climbs far above start is rare: there, and only there, every row has a maximum of its own,
    E_ijn = exp(s_jn - top_in).
    """

    padding = EMPTY

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        super().__init__(config, dims, S, z0)
        (B, H, nc, C, N), zero, one = S.shape, const(0, dims.acc), const(1, dims.acc)
        j, m, n = reduce_axis(C, "j"), reduce_axis(C, "m"), reduce_axis(N, "n")
        peak = compute((B, H, nc, N), lambda b, h, c, n: reduce_max(S[b, h, c, j.var, n], j), name="peak")
        self.top = top = stop_gradient(scan(peak, axis=2, kind="max", initial=z0, name="top"))
        first = (lambda b, h, n: z0[b, h, n]) if z0 is not None else (lambda b, h, n: const(EMPTY, dims.acc))
        past = lambda b, h, c, n: if_then_else(c > 0, top[b, h, c - 1, n], first(b, h, n))
        self.past = past = compute(peak.shape, past, name="top_before")
        self.write = w = compute(S.shape, lambda b, h, c, j, n: share(dims, S[b, h, c, j, n], top[b, h, c, n]), name="w")
        self.g = g = compute(peak.shape, lambda b, h, c, n: share(dims, past[b, h, c, n], top[b, h, c, n]), name="g")
        self.added = compute(peak.shape, lambda b, h, c, n: reduce_sum(w[b, h, c, m.var, n], m), name="mass_added")
        whole = (
            None
            if z0 is None
            else compute(z0.shape, lambda b, h, n: if_then_else(written(dims, z0[b, h, n]), one, zero), name="mass_first")
        )
        self.mass = scan(self.added, axis=2, exclusive=True, decay=g, initial=whole, name="mass")
        begin = lambda b, h, c, n: maximum(past[b, h, c, n], S[b, h, c, 0, n])
        self.start = start = stop_gradient(compute(peak.shape, begin, name="start"))
        least = lambda b, h, c, n: if_then_else(written(dims, top[b, h, c, n]), exp(start[b, h, c, n] - top[b, h, c, n]), one)
        least = compute(peak.shape, least, name="climb")
        self.least = stop_gradient(compute((B, H, nc), lambda b, h, c: reduce_min(least[b, h, c, n.var], n), name="least"))
        # Where it could overflow nothing reads it.
        seen = lambda b, h, c, j, n: self.either(b, h, c, share(dims, S[b, h, c, j, n], start[b, h, c, n]), zero)
        self.seen = compute(S.shape, seen, name="w_seen")
        self.kept = compute(peak.shape, lambda b, h, c, n: share(dims, past[b, h, c, n], start[b, h, c, n]), name="g_seen")
        self._rows()

    def _rows(self) -> None:
        """Sums of weights, seen from every row, and their reciprocals."""
        dims, S, w, g, past, mass = self.dims, self.S, self.seen, self.kept, self.past, self.mass
        C, zero, one = self.config.chunk, const(0, self.dims.acc), const(1, self.dims.acc)
        own = stop_gradient(scan(S, axis=3, kind="max", initial=past, name="row_top"))

        def weight(b: Any, h: Any, c: Any, i: Any, j: Any, n: Any) -> Any:
            seen = all_of(j <= i, written(dims, own[b, h, c, i, n]))
            return if_then_else(seen, exp(S[b, h, c, j, n] - own[b, h, c, i, n]), zero)

        self.E = E = compute((*self.row, C, dims.N), weight, name="E")
        self.r = r = compute(S.shape, lambda b, h, c, i, n: share(dims, past[b, h, c, n], own[b, h, c, i, n]), name="r")
        j, m = reduce_axis(C, "j"), reduce_axis(C, "m")
        below = compute((*self.row, C), lambda b, h, c, i, j: if_then_else(j <= i, one, zero), name="below")
        near = compute(
            S.shape, lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j), name="prefix"
        )
        far = compute(S.shape, lambda b, h, c, i, n: reduce_sum(E[b, h, c, i, m.var, n], m), name="E_sum")
        self.sums = sums = compute(
            S.shape,
            lambda b, h, c, i, n: self.either(
                b,
                h,
                c,
                near[b, h, c, i, n] + g[b, h, c, n] * mass[b, h, c, n],
                far[b, h, c, i, n] + r[b, h, c, i, n] * mass[b, h, c, n],
            ),
            name="sums",
        )
        part = lambda b, h, c, i, n: if_then_else(sums[b, h, c, i, n] != zero, one / sums[b, h, c, i, n], zero)
        self.part = compute(S.shape, part, name="part")

    def either(self, b: Any, h: Any, c: Any, near: Any, far: Any) -> Any:
        """`near` in a chunk whose rows all have weights of a size, `far` in another."""
        return if_then_else(self.least[b, h, c] >= const(SMALL[self.dims.io], self.dims.acc), near, far)

    def logits(self, A: Tensor, past: Tensor) -> Tensor:
        j, m, zero, w, E = (
            reduce_axis(self.config.chunk, "j"),
            reduce_axis(self.config.chunk, "m"),
            const(0, self.dims.acc),
            self.seen,
            self.E,
        )
        below = compute(A.shape, lambda b, h, c, i, j: if_then_else(j <= i, A[b, h, c, i, j], zero), name="A_below")
        near = compute(
            self.S.shape, lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j), name="inside"
        )
        far = compute(
            self.S.shape, lambda b, h, c, i, n: reduce_sum(A[b, h, c, i, m.var] * E[b, h, c, i, m.var, n], m), name="inside_far"
        )

        def mean(b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
            old = past[b, h, c, i, n]
            return self.part[b, h, c, i, n] * self.either(
                b, h, c, near[b, h, c, i, n] + self.kept[b, h, c, n] * old, far[b, h, c, i, n] + self.r[b, h, c, i, n] * old
            )

        return compute(self.S.shape, mean, name="means")

    def gather(self, U: Tensor) -> tuple[Tensor, Tensor]:
        n, m, w, E = reduce_axis(self.dims.N, "n"), reduce_axis(self.dims.N, "m"), self.seen, self.E
        zero, square = const(0, self.dims.acc), (*self.row, self.config.chunk)
        X = compute(U.shape, lambda b, h, c, i, n: U[b, h, c, i, n] * self.part[b, h, c, i, n], name="X")
        G = compute(square, lambda b, h, c, i, j: reduce_sum(X[b, h, c, i, n.var] * w[b, h, c, j, n.var], n), name="G")
        far = compute(square, lambda b, h, c, i, j: reduce_sum(X[b, h, c, i, m.var] * E[b, h, c, i, j, m.var], m), name="G_far")
        near = lambda b, h, c, i, j: if_then_else(j <= i, G[b, h, c, i, j], zero)
        P = compute(square, lambda b, h, c, i, j: self.either(b, h, c, near(b, h, c, i, j), far[b, h, c, i, j]), name="G_below")
        kept = lambda b, h, c, i, n: X[b, h, c, i, n] * self.either(b, h, c, self.kept[b, h, c, n], self.r[b, h, c, i, n])
        return P, compute(U.shape, kept, name="R")

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        return self.sums[b, h, c, i, n] != const(0, self.dims.acc)

    def of_chunk(self) -> Tensor:
        return compute((*self.g.shape, 1), lambda b, h, c, n, x: self.g[b, h, c, n], name="kept")

    def mean(self, total: Any, b: Any, h: Any, n: Any) -> Any:
        last, zero = self._last(b, h, n), const(0, self.dims.acc)
        return if_then_else(last != zero, total / last, zero)

    def last(self) -> list[Tensor]:
        (B, H, nc, N), dims = self.top.shape, self.dims
        z = lambda b, h, n: if_then_else(
            self._last(b, h, n) != const(0, dims.acc),
            self.top[b, h, nc - 1, n] + log(self._last(b, h, n)),
            const(EMPTY, dims.acc),
        )
        return [compute((B, H, N), z, name="z_end")]

    def _last(self, b: Any, h: Any, n: Any) -> Any:
        """The sum of weights after the last chunk."""
        c = self.top.shape[2] - 1
        return self.g[b, h, c, n] * self.mass[b, h, c, n] + self.added[b, h, c, n]


KINDS = {"running": Running, "fixed": Fixed, "none": NoNormalizer}
