"""The weights with which tokens are written into slots, seen from the rows of a chunk.

z is the logarithm of the sum of exp(s) so far, slot by slot; it only grows, so that no weight exp(s_j - z_j) is above 1 ("fixed")::

    z_i = log(exp(zb) + sum_{j<=i} exp(s_j))        zb: before the chunk, ze: after it

Weights seen from later rows ("running") are quotients of sums instead, in which no row has an exponential of its own.

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
    minimum,
    reduce_axis,
    reduce_max,
    reduce_sum,
    scan,
    stop_gradient,
)

Tensor = te.Tensor

EMPTY = float("-inf")

HIGH = {"float16": 8.0, "bfloat16": 39.0, "float32": 39.0, "float64": 39.0}
"""The highest climb of s inside a chunk for which exp of it, its products and its square are far from overflow."""


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
    """A token's weight is its share of the past as row i sees it, a quotient of sums of exp(s - start).

    start is the largest s up to the first row of the chunk, so that no row depends on later ones and all sums are at least 1.  Rows up
    to which s climbs far above start are rare: they, and only they, have a maximum of their own, E_ijn = exp(s_jn - top_in).  Whether
    a row is one of them follows from what it sees, so no later token changes its bits; whether a chunk has any is asked once for
    the chunk.  What a chunk hands on is seen from `end`, slot by slot start or the largest s.
    """

    padding = EMPTY

    def __init__(self, config: Any, dims: Any, S: Tensor, z0: Tensor | None) -> None:
        super().__init__(config, dims, S, z0)
        (B, H, nc, C, N), one = S.shape, const(1, dims.acc)
        j, m, n = reduce_axis(C, "j"), reduce_axis(C, "m"), reduce_axis(N, "n")
        first = (lambda b, h, n: z0[b, h, n]) if z0 is not None else (lambda b, h, n: const(EMPTY, dims.acc))
        before = lambda X, name: compute(
            X.shape, lambda b, h, c, n: if_then_else(c > 0, X[b, h, c - 1, n], first(b, h, n)), name=name
        )
        peak = compute((B, H, nc, N), lambda b, h, c, n: reduce_max(S[b, h, c, j.var, n], j), name="peak")
        self.top = top = stop_gradient(scan(peak, axis=2, kind="max", initial=z0, name="top"))
        self.past = past = before(top, "top_before")
        begin = lambda b, h, c, n: maximum(past[b, h, c, n], S[b, h, c, 0, n])
        self.start = start = stop_gradient(compute(peak.shape, begin, name="start"))
        climb = lambda b, h, c, n: if_then_else(
            written(dims, top[b, h, c, n]), top[b, h, c, n] - start[b, h, c, n], const(0, dims.acc)
        )
        climb = stop_gradient(compute(peak.shape, climb, name="climb"))
        self.highest = stop_gradient(compute((B, H, nc), lambda b, h, c: reduce_max(climb[b, h, c, n.var], n), name="highest"))
        # What a chunk hands on is seen from here, slot by slot, and what it gets from where the chunk before it left off.
        end = lambda b, h, c, n: if_then_else(self._near(climb[b, h, c, n]), start[b, h, c, n], top[b, h, c, n])
        end = stop_gradient(compute(peak.shape, end, name="end_here"))
        self.end = stop_gradient(scan(end, axis=2, kind="max", initial=z0, name="end"))
        self.begin = before(self.end, "end_before")
        self.write = w = compute(S.shape, lambda b, h, c, j, n: share(dims, S[b, h, c, j, n], self.end[b, h, c, n]), name="w")
        self.g = g = compute(peak.shape, lambda b, h, c, n: share(dims, self.begin[b, h, c, n], self.end[b, h, c, n]), name="g")
        self.added = compute(peak.shape, lambda b, h, c, n: reduce_sum(w[b, h, c, m.var, n], m), name="mass_added")
        whole = None
        if z0 is not None:
            some = lambda b, h, n: if_then_else(written(dims, z0[b, h, n]), one, const(0, dims.acc))
            whole = compute(z0.shape, some, name="mass_first")
        self.mass = scan(self.added, axis=2, exclusive=True, decay=g, initial=whole, name="mass")
        # Columns that only rows far above start see are cut off there: they are finite for the others, which do not see them.
        low = lambda b, h, c, j, n: exp(minimum(S[b, h, c, j, n] - start[b, h, c, n], const(HIGH[dims.io], dims.acc)))
        seen = lambda *at: if_then_else(written(dims, S(*at)), low(*at), const(0, dims.acc))
        self.seen = compute(S.shape, seen, name="w_seen", axes=["b", "h", "c", "j", "n"])
        self.kept = compute(peak.shape, lambda b, h, c, n: share(dims, self.begin[b, h, c, n], start[b, h, c, n]), name="g_seen")
        self._rows()

    def _rows(self) -> None:
        """Sums of weights, seen from every row."""
        dims, S, w, g, mass = self.dims, self.S, self.seen, self.kept, self.mass
        C, zero, one = self.config.chunk, const(0, self.dims.acc), const(1, self.dims.acc)
        own = stop_gradient(scan(S, axis=3, kind="max", initial=self.past, name="row_top"))

        n = reduce_axis(dims.N, "n")
        lift = lambda b, h, c, i, n: if_then_else(
            written(dims, own[b, h, c, i, n]), own[b, h, c, i, n] - self.start[b, h, c, n], zero
        )
        lift = compute(S.shape, lift, name="lift")
        self.lift = stop_gradient(compute(self.row, lambda b, h, c, i: reduce_max(lift[b, h, c, i, n.var], n), name="row_lift"))

        def weight(b: Any, h: Any, c: Any, i: Any, j: Any, n: Any) -> Any:
            seen = all_of(j <= i, written(dims, own[b, h, c, i, n]))
            return if_then_else(seen, exp(S[b, h, c, j, n] - own[b, h, c, i, n]), zero)

        self.E = E = compute((*self.row, C, dims.N), weight, name="E")
        kept = lambda b, h, c, i, n: share(dims, self.begin[b, h, c, n], own[b, h, c, i, n])
        self.r = r = compute(S.shape, kept, name="r")
        j, m = reduce_axis(C, "j"), reduce_axis(C, "m")
        below = compute((*self.row, C), lambda b, h, c, i, j: if_then_else(j <= i, one, zero), name="below")
        prefix = lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j)
        near = compute(S.shape, prefix, name="prefix")
        far = compute(S.shape, lambda b, h, c, i, n: reduce_sum(E[b, h, c, i, m.var, n], m), name="E_sum")

        def total(b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
            old = mass[b, h, c, n]
            return self.either(b, h, c, i, near[b, h, c, i, n] + g[b, h, c, n] * old, far[b, h, c, i, n] + r[b, h, c, i, n] * old)

        self.sums = compute(S.shape, total, name="sums")

    def share_of(self, x: Any, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        """`x` as a part of all weights that row i sees in slot n, 0 of nothing."""
        sums, zero = self.sums[b, h, c, i, n], const(0, self.dims.acc)
        return if_then_else(sums != zero, x / sums, zero)

    def either(self, b: Any, h: Any, c: Any, i: Any, near: Any, far: Any) -> Any:
        """`near` in a row that sees weights of a size, `far` in another; a chunk without any of those computes nothing for them."""
        row = if_then_else(self._near(self.lift[b, h, c, i]), near, far)
        return if_then_else(self._near(self.highest[b, h, c]), near, row)

    def _near(self, climb: Any) -> Any:
        return climb <= const(HIGH[self.dims.io], self.dims.acc)

    def logits(self, A: Tensor, past: Tensor) -> Tensor:
        j, m = reduce_axis(self.config.chunk, "j"), reduce_axis(self.config.chunk, "m")
        zero, shape, w, E = const(0, self.dims.acc), self.S.shape, self.seen, self.E
        below = compute(A.shape, lambda b, h, c, i, j: if_then_else(j <= i, A[b, h, c, i, j], zero), name="A_below")
        near = compute(shape, lambda b, h, c, i, n: reduce_sum(below[b, h, c, i, j.var] * w[b, h, c, j.var, n], j), name="inside")
        far = compute(
            shape, lambda b, h, c, i, n: reduce_sum(A[b, h, c, i, m.var] * E[b, h, c, i, m.var, n], m), name="inside_far"
        )

        def mean(b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
            old = past[b, h, c, i, n]
            here, there = near[b, h, c, i, n] + self.kept[b, h, c, n] * old, far[b, h, c, i, n] + self.r[b, h, c, i, n] * old
            return self.share_of(self.either(b, h, c, i, here, there), b, h, c, i, n)

        return compute(shape, mean, name="means")

    def gather(self, U: Tensor) -> tuple[Tensor, Tensor]:
        n, m, w, E = reduce_axis(self.dims.N, "n"), reduce_axis(self.dims.N, "m"), self.seen, self.E
        zero, square = const(0, self.dims.acc), (*self.row, self.config.chunk)
        X = compute(U.shape, lambda *at: self.share_of(U(*at), *at), name="X", axes=["b", "h", "c", "i", "n"])
        G = compute(square, lambda b, h, c, i, j: reduce_sum(X[b, h, c, i, n.var] * w[b, h, c, j, n.var], n), name="G")
        far = compute(square, lambda b, h, c, i, j: reduce_sum(X[b, h, c, i, m.var] * E[b, h, c, i, j, m.var], m), name="G_far")
        near = lambda b, h, c, i, j: if_then_else(j <= i, G[b, h, c, i, j], zero)
        P = compute(
            square, lambda b, h, c, i, j: self.either(b, h, c, i, near(b, h, c, i, j), far[b, h, c, i, j]), name="G_below"
        )
        kept = lambda b, h, c, i, n: X[b, h, c, i, n] * self.either(b, h, c, i, self.kept[b, h, c, n], self.r[b, h, c, i, n])
        return P, compute(U.shape, kept, name="R")

    def present(self, b: Any, h: Any, c: Any, i: Any, n: Any) -> Any:
        return self.sums[b, h, c, i, n] != const(0, self.dims.acc)

    def of_chunk(self) -> Tensor:
        return compute((*self.g.shape, 1), lambda b, h, c, n, x: self.g[b, h, c, n], name="kept")

    def mean(self, total: Any, b: Any, h: Any, n: Any) -> Any:
        last, zero = self._last(b, h, n), const(0, self.dims.acc)
        return if_then_else(last != zero, total / last, zero)

    def last(self) -> list[Tensor]:
        (B, H, nc, N), dims = self.end.shape, self.dims

        def z(b: Any, h: Any, n: Any) -> Any:
            last = self._last(b, h, n)
            return if_then_else(last != const(0, dims.acc), self.end[b, h, nc - 1, n] + log(last), const(EMPTY, dims.acc))

        return [compute((B, H, N), z, name="z_end")]

    def _last(self, b: Any, h: Any, n: Any) -> Any:
        """The sum of weights after the last chunk."""
        c = self.end.shape[2] - 1
        return self.g[b, h, c, n] * self.mass[b, h, c, n] + self.added[b, h, c, n]


KINDS = {"running": Running, "fixed": Fixed, "none": NoNormalizer}
