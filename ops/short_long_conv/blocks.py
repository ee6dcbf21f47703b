"""A long convolution by blocks and a transform over them, as two tensor expressions.

Sequence and kernel are cut into N blocks of m positions, t = n m + i.  Block n of the result is the sum over n' of A_(n-n') x_n', where A_d
is the Toeplitz matrix of the taps from (d - 1) m to (d + 1) m: a product of polynomials in n whose coefficients are blocks.  A discrete
Fourier transform over n, of length 2 N so that nothing wraps around, makes it one convolution of length m for every frequency f::

    X_e[i] = sum_n U[e, n] x[n m + i]               e = 2 f, 2 f + 1: real and imaginary part
    P_e[i] = sum_d V[e, d] k[d m + i]
    F_r = a[r, 0] X_2f + a[r, 1] X_2f+1             r = 3 f, 3 f + 1, 3 f + 2
    K_r[i - m h] = w[r, h, 0] P_2f[i] + w[r, h, 1] P_2f+1[i]          h = 0, 1: taps of a block and, turned by a phase, of the one before
    Y_r[i] = sum_j K_r[i - j] F_r[j]
    Z_e = sum_k z[e, k] Y_(3f+k)
    y[n m + i] = sum_e G[n, e] Z_e[i]

with the matrices of `tables.py`.  Of a product of complex numbers (a + i b) (c + i d) three products of real ones are left (Gauss)::

    p0 = a (c + d)    p1 = c (b - a)    p2 = d (a + b)      real part p0 - p2, imaginary part p0 + p1

A position costs 8 N + 6 m operations, where the sum itself takes up to 2 N m: it grows as the square root of the length.  What becomes of the
kernel is the same for all sequences, and has an expression of its own.  Sequences and kernels have whole blocks; zeros fill them up.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import compute, floordiv, floormod, reduce_axis, reduce_sum

Tensor = te.Tensor


def spectrum(config: Any, dims: Any, taps: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """`taps` [S, D m, C], tables `v` [2 N, D] and `w` [3 N, 2, 2] -> the kernels K_r, [C / width, S, 3 N, 2 m, width], lag -m first."""
    acc, m, width = dims.acc, config.length, config.width
    groups = dims.C // width

    def piece(q: Any, s: Any, d: Any, i: Any, c: Any) -> Any:
        return taps[s, d * m + i, q * width + c].astype(acc)

    pieces = compute((groups, dims.S, config.lags, m, width), piece, name="pieces")
    d = reduce_axis(config.lags, "d")
    parts = compute(
        (groups, dims.S, m, 2 * config.blocks, width),
        lambda q, s, i, e, c: reduce_sum(v[e, d.var] * pieces[q, s, d.var, i, c], d),
        name="parts",
    )

    def kernel(q: Any, s: Any, r: Any, i: Any, c: Any) -> Any:
        half, at, e = floordiv(i, m), floormod(i, m), 2 * floordiv(r, 3)
        return w[r, half, 0] * parts[q, s, at, e, c] + w[r, half, 1] * parts[q, s, at, e + 1, c]

    return (compute((groups, dims.S, 3 * config.blocks, 2 * m, width), kernel, name="kernels"),)


def convolve(
    config: Any, dims: Any, x: Tensor, kernels: Tensor, u: Tensor, g: Tensor, a: Tensor, z: Tensor
) -> tuple[Tensor, ...]:
    """`x` [B, N m, C], `kernels` of `spectrum`, tables `u` [2 N, N], `g` [N, 2 N], `a` [3 N, 2], `z` [2 N, 3] -> y [B, N m, C]."""
    acc, N, m, width = dims.acc, config.blocks, config.length, config.width
    lead, R = (dims.C // width, dims.B), 3 * config.blocks

    # Positions of a block in reverse: every index of the convolution is then a sum.
    def row(q: Any, b: Any, n: Any, i: Any, c: Any) -> Any:
        return x[b, n * m + (m - 1 - i), q * width + c].astype(acc)

    rows = compute((*lead, N, m, width), row, name="rows")
    n = reduce_axis(N, "n")
    parts = compute(
        (*lead, m, 2 * N, width),
        lambda q, b, i, e, c: reduce_sum(u[e, n.var] * rows[q, b, n.var, i, c], n),
        name="parts",
    )

    def factor(q: Any, b: Any, r: Any, i: Any, c: Any) -> Any:
        e = 2 * floordiv(r, 3)
        return a[r, 0] * parts[q, b, i, e, c] + a[r, 1] * parts[q, b, i, e + 1, c]

    factors = compute((*lead, R, m, width), factor, name="factors")
    # A copy for each sequence: its gradient is a sum over positions inside the sequence's task, and one over sequences after that.
    own = compute((*lead, R, 2 * m, width), lambda q, b, r, i, c: kernels[q, 0, r, i, c], name="own")
    j = reduce_axis(m, "j")
    products = compute(
        (*lead, R, m, width),
        lambda q, b, r, i, c: reduce_sum(own[q, b, r, i + j.var + 1, c] * factors[q, b, r, j.var, c], j),
        name="products",
    )

    def added(q: Any, b: Any, i: Any, e: Any, c: Any) -> Any:
        r = 3 * floordiv(e, 2)
        terms = [z[e, k] * products[q, b, r + k, i, c] for k in range(3)]
        return terms[0] + terms[1] + terms[2]

    sums = compute((*lead, m, 2 * N, width), added, name="sums")
    e = reduce_axis(2 * N, "e")
    filtered = compute(
        (*lead, m, N, width),
        lambda q, b, i, n, c: reduce_sum(g[n, e.var] * sums[q, b, i, e.var, c], e),
        name="filtered",
    )

    def result(b: Any, t: Any, c: Any) -> Any:
        value = filtered[floordiv(c, width), b, floormod(t, m), floordiv(t, m), floormod(c, width)]
        return value.astype(dims.io)

    return (compute(x.shape, result, name="y"),)
