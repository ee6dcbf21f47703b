"""Index maps whose inverse the solver finds, one behaviour each, against torch autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.autodiff.compare import Case, check
from tilegen.expression import all_of, compute, floordiv, floormod, if_then_else, placeholder, reduce_axis, reduce_sum

f64 = "float64"


def tensor(name, *shape):
    return placeholder(shape, f64, name)


def index(shape, of):
    """The torch index of a map on one variable."""
    return of(torch.arange(shape))


def permutation_and_broadcast():
    A, b = tensor("A", 3, 4, 5), tensor("b", 5)
    Y = compute((5, 3, 4), lambda i, j, k: A[j, k, i] * b[i], "Y")
    return Case([A, b], [Y], lambda a, b: a.permute(2, 0, 1) * b[:, None, None])


def shifts_with_masks():
    A = tensor("A", 10)
    Y = compute((10,), lambda i: if_then_else(i >= 3, A[i - 3], 0.0) * 2.0 + if_then_else(i < 9, A[i + 1], 0.0), "Y")
    return Case([A], [Y], lambda a: F.pad(a, (3, 0))[:10] * 2 + F.pad(a, (0, 1))[1:])


def window_backwards():
    A, r = tensor("A", 12), reduce_axis(4, "r")
    Y = compute((12,), lambda i: reduce_sum(if_then_else(i - r >= 0, A[i - r] * A[i], 0.0), r), "Y")
    return Case([A], [Y], lambda a: sum(F.pad(a, (r, 0))[:12] for r in range(4)) * a)


def long_window_backwards():
    A, w, r = tensor("A", 24), tensor("w", 20), reduce_axis(20, "r")
    Y = compute((24,), lambda i: reduce_sum(if_then_else(i - r >= 0, A[i - r] * w[r], 0.0), r), "Y")
    return Case([A, w], [Y], lambda a, w: F.conv1d(F.pad(a, (19, 0))[None, None], w.flip(0)[None, None])[0, 0])


def blocks_from_flat():
    A = tensor("A", 24)
    return Case([A], [compute((6, 4), lambda c, t: A[c * 4 + t], "Y")], lambda a: a.view(6, 4))


def pooled_blocks():
    A, r = tensor("A", 24), reduce_axis(4, "r")
    return Case([A], [compute((6,), lambda g: reduce_sum(A[g * 4 + r], r), "Y")], lambda a: a.view(6, 4).sum(1))


def ragged_blocks():
    A = tensor("A", 22)
    Y = compute((6, 4), lambda c, t: if_then_else(c * 4 + t < 22, A[c * 4 + t], 0.0), "Y")
    return Case([A], [Y], lambda a: F.pad(a, (0, 2)).view(6, 4))


def three_levels_of_blocks():
    A = tensor("A", 24)
    return Case([A], [compute((3, 2, 4), lambda a, b, c: A[(a * 2 + b) * 4 + c], "Y")], lambda a: a.view(3, 2, 4))


def stride_and_offset():
    A = tensor("A", 24)
    return Case([A], [compute((3,), lambda i: A[i * 7 + 2], "Y")], lambda a: a[2::7][:3])


def convolution():
    A, w, r = tensor("A", 16), tensor("w", 5), reduce_axis(5, "r")
    Y = compute((12,), lambda i: reduce_sum(A[i + r] * w[r], r), "Y")
    return Case([A, w], [Y], lambda a, w: F.conv1d(a[None, None], w[None, None])[0, 0])


def strided_convolution():
    A, w, r = tensor("A", 16), tensor("w", 5), reduce_axis(5, "r")
    Y = compute((6,), lambda i: reduce_sum(A[i * 2 + r] * w[r], r), "Y")
    return Case([A, w], [Y], lambda a, w: F.conv1d(a[None, None], w[None, None], stride=2)[0, 0])


def strided_dilated_convolution():
    A, w, r = tensor("A", 16), tensor("w", 5), reduce_axis(5, "r")
    Y = compute((4,), lambda i: reduce_sum(A[i * 2 + r * 2] * w[r], r), "Y")
    return Case([A, w], [Y], lambda a, w: F.conv1d(a[None, None], w[None, None], stride=2, dilation=2)[0, 0])


def convolution_in_chunk_coordinates():
    x, w, r = tensor("x", 6, 4, 3), tensor("w", 3, 5), reduce_axis(5, "r")

    def body(n, t, c):
        at = n * 4 + t - r
        return reduce_sum(if_then_else(at >= 0, w[c, r] * x[floordiv(at, 4), floormod(at, 4), c], 0.0), r)

    def reference(x, w):
        flat = F.pad(x.reshape(24, 3).T, (4, 0))
        return F.conv1d(flat[None], w.flip(1)[:, None], groups=3)[0].T.reshape(6, 4, 3)

    return Case([x, w], [compute((6, 4, 3), body, "Y")], reference)


def quotient_and_remainder():
    A, B = tensor("A", 6), tensor("B", 4)
    Y = compute((24,), lambda i: A[floordiv(i, 4)] * B[floormod(i, 4)], "Y")
    return Case([A, B], [Y], lambda a, b: (a[:, None] * b).reshape(-1))


def ragged_quotient_and_remainder():
    A, B = tensor("A", 6), tensor("B", 4)
    Y = compute((22,), lambda i: A[floordiv(i, 4)] * B[floormod(i, 4)], "Y")
    return Case([A, B], [Y], lambda a, b: (a[:, None] * b).reshape(-1)[:22])


def flat_from_blocks():
    C = tensor("C", 6, 4)
    return Case([C], [compute((24,), lambda i: C[floordiv(i, 4), floormod(i, 4)], "Y")], lambda c: c.reshape(-1))


def two_block_widths():
    A, D = tensor("A", 6), tensor("D", 3)
    Y = compute((24,), lambda i: A[floordiv(i, 4)] * D[floordiv(i, 8)], "Y")
    return Case([A, D], [Y], lambda a, d: a.repeat_interleave(4) * d.repeat_interleave(8))


def shifted_quotient():
    A = tensor("A", 6)
    return Case([A], [compute((22,), lambda i: A[floordiv(i + 2, 4)], "Y")], lambda a: a[(torch.arange(22) + 2) // 4])


def diagonal():
    A = tensor("A", 5, 5)
    return Case([A], [compute((5,), lambda i: A[i, i], "Y")], lambda a: a.diagonal())


def fixed_place():
    """Every row uses the last element of its row: summed once for each row, not once for each element."""
    A, W = tensor("A", 5, 40), tensor("W", 5, 40, 6)
    Y = compute((5, 40, 6), lambda i, j, k: A[i, 39] * W[i, j, k] - A[i, j], "Y")
    return Case([A, W], [Y], lambda a, w: a[:, 39:, None] * w - a[:, :, None])


def one_element_for_all():
    A, W = tensor("A", 30), tensor("W", 5, 20)
    return Case([A, W], [compute((5, 20), lambda i, j: A[3] * W[i, j], "Y")], lambda a, w: a[3] * w)


def summed_diagonal():
    A, W = tensor("A", 30, 30), tensor("W", 30, 20)
    return Case([A, W], [compute((30, 20), lambda i, e: A[i, i] * W[i, e], "Y")], lambda a, w: a.diagonal()[:, None] * w)


def toeplitz_bias():
    B = tensor("B", 9)
    i = torch.arange(5)
    return Case([B], [compute((5, 5), lambda i, j: B[i - j + 4], "Y")], lambda b: b[i[:, None] - i + 4])


def parity_dependent_offset():
    A, B = tensor("A", 8), tensor("B", 16)
    group = lambda i, g: floordiv(i, 2) - 2 - floormod(floordiv(i, 2), 2) + g

    def body(i, g):
        visible = all_of(group(i, g) >= 0, group(i, g) <= floordiv(i, 2) - 2)
        return if_then_else(visible, A[group(i, g)] * B[i], 0.0)

    def reference(a, b):
        block = torch.arange(16) // 2
        at = (block - 2 - block % 2)[:, None] + torch.arange(2)
        seen = (at >= 0) & (at <= block[:, None] - 2)
        return torch.where(seen, a[at.clamp(0)] * b[:, None], 0.0)

    return Case([A, B], [compute((16, 2), body, "Y")], reference)


def parity_in_pair_coordinates():
    A, B = tensor("A", 8), tensor("B", 16)
    group = lambda i, g: floordiv(i, 4) * 2 - 2 + g
    Y = compute((16, 2), lambda i, g: if_then_else(group(i, g) >= 0, A[group(i, g)] * B[i], 0.0), "Y")

    def reference(a, b):
        at = (torch.arange(16) // 4 * 2 - 2)[:, None] + torch.arange(2)
        return torch.where(at >= 0, a[at.clamp(0)] * b[:, None], 0.0)

    return Case([A, B], [Y], reference)


def two_strides():
    A = tensor("A", 30)
    at = torch.arange(4)[:, None] * 3 + torch.arange(5) * 4
    return Case([A], [compute((4, 5), lambda i, j: A[i * 3 + j * 4], "Y")], lambda a: a[at])


def reversal_and_stride():
    A = tensor("A", 30)
    Y = compute((10,), lambda i: A[29 - i] * A[3 * i], "Y")
    return Case([A], [Y], lambda a: a[29 - torch.arange(10)] * a[torch.arange(10) * 3])


def repeated_index():
    A = tensor("A", 4, 4)
    Y = compute((4, 4), lambda i, j: A[i, j] * A[i, j] + A[j, i], "Y")
    return Case([A], [Y], lambda a: a * a + a.T)


def mask_where_not_affine():
    B = tensor("B", 9)
    Y = compute((4,), lambda i: 1.0 * B[i * i - i], "Y")
    return Case([B], [Y], lambda b: b[torch.tensor([0, 0, 2, 6])], limit=1e9)


CASES = [
    permutation_and_broadcast,
    shifts_with_masks,
    window_backwards,
    long_window_backwards,
    blocks_from_flat,
    pooled_blocks,
    ragged_blocks,
    three_levels_of_blocks,
    stride_and_offset,
    convolution,
    strided_convolution,
    strided_dilated_convolution,
    convolution_in_chunk_coordinates,
    quotient_and_remainder,
    ragged_quotient_and_remainder,
    flat_from_blocks,
    two_block_widths,
    shifted_quotient,
    diagonal,
    fixed_place,
    one_element_for_all,
    summed_diagonal,
    toeplitz_bias,
    parity_dependent_offset,
    parity_in_pair_coordinates,
    two_strides,
    reversal_and_stride,
    repeated_index,
    mask_where_not_affine,
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_index_map(case):
    (prepared,) = check(case())
    if case is not mask_where_not_affine:
        assert all(note.waste <= 4 and not note.masked for note in prepared.adjoint.notes)
