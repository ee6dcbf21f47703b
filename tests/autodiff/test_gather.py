"""Reads at data-dependent positions and the scatter-add that is their adjoint."""

from __future__ import annotations

import pytest
import torch

from tests.autodiff.compare import Case, check
from tests.autodiff.executor import run
from tilegen.autodiff import gradient
from tilegen.errors import AutodiffError, ExpressionError
from tilegen.expression import all_of, compute, floordiv, gather, if_then_else, placeholder, reduce_axis, reduce_sum, scatter_add
from tilegen.expression.gather import scatter_spec
from tilegen.expression.walkers import topological


def tensor(name, *shape, dtype="float64"):
    return placeholder(shape, dtype, name)


def integers(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def inside(position, n):
    return all_of(position >= 0, position < n)


def scatters(prepared):
    return [s for op in topological(prepared.adjoint) if (s := scatter_spec(op)) is not None]


def test_gather_with_repeated_and_missing_rows():
    X, I = tensor("X", 2, 5, 3), tensor("I", 2, 4, 1, dtype="int32")
    index = integers([3, 0, 3, -1], [4, 7, 4, 4])[..., None]

    def reference(x, i):
        at, found = i.long().clamp(0, 4).expand(2, 4, 3), (i >= 0) & (i < 5)
        return torch.where(found, x.gather(1, at), 0.0)

    (p,) = check(Case([X, I], [gather(X, I, axis=1, name="Y")], reference, {"I": index}))
    assert [s.unique for s in scatters(p)] == [False]


def test_distinct_rows_give_a_collision_free_scatter():
    X, I = tensor("X", 5, 3), tensor("I", 4, 1, dtype="int32")
    index = integers(3, 0, 4, 1)[:, None]
    Y = gather(X, I, axis=0, unique=True, name="Y")
    (p,) = check(Case([X, I], [Y], lambda x, i: x[i[:, 0].long()], {"I": index}))
    assert [s.unique for s in scatters(p)] == [True]


def test_scatter_add_and_its_adjoint():
    U, I = tensor("U", 2, 4, 3), tensor("I", 2, 4, 1, dtype="int32")
    index = integers([3, 0, 3, -1], [4, 5, 4, 4])[..., None]
    Y = scatter_add(U, I, axis=1, size=5, name="Y")

    def reference(u, i):
        found = (i >= 0) & (i < 5)
        rows = torch.where(found, u, 0.0)
        return torch.zeros(2, 5, 3, dtype=u.dtype).scatter_add(1, i.long().clamp(0, 4).expand(2, 4, 3), rows)

    check(Case([U, I], [Y], reference, {"I": index}))


def test_compact_and_extract_are_each_others_adjoint():
    """Active rows packed by their running count, and put back."""
    X, P = tensor("X", 6, 3), tensor("P", 6, 1, dtype="int32")
    place = integers(-1, 0, 1, -1, -1, 2)[:, None]
    packed = scatter_add(X, P, axis=0, size=4, unique=True, name="packed")
    squared = compute((4, 3), lambda n, c: packed[n, c] * packed[n, c], "squared")
    Y = gather(squared, P, axis=0, unique=True, name="Y")
    reference = lambda x, p: torch.where(p >= 0, x * x, 0.0)
    (p,) = check(Case([X, P], [Y], reference, {"P": place}))
    assert all(s.unique for s in scatters(p))


def test_a_data_dependent_read_inside_a_larger_stage():
    """The affine indices are inverted as usual, what the position does not need is summed before."""
    X, W, I = tensor("X", 4, 7, 2), tensor("W", 3, 9), tensor("I", 12, dtype="int32")
    r = reduce_axis(9, "r")

    def body(i, h):
        at = I[i * 3 + h]
        return reduce_sum(if_then_else(inside(at, 7), X[i, at, floordiv(h, 2)] * W[h, r], 0.0), r)

    index = torch.randint(-1, 8, (12,), generator=torch.Generator().manual_seed(1)).int()

    def reference(x, w, i):
        at = i.long().reshape(4, 3)
        row = x[torch.arange(4)[:, None], at.clamp(0, 6), torch.tensor([0, 0, 1])]
        return torch.where((at >= 0) & (at < 7), row * w.sum(1), 0.0)

    check(Case([X, W, I], [compute((4, 3), body, "Y")], reference, {"I": index}))


def test_a_position_without_rows_of_its_own_is_a_mask():
    """X[b, I[b]] reads one row for each b: its adjoint needs no scatter."""
    X, I = tensor("X", 3, 5), tensor("I", 3, dtype="int32")
    Y = compute((3,), lambda b: if_then_else(inside(I[b], 5), X[b, I[b]], 0.0), "Y")
    reference = lambda x, i: x[torch.arange(3), i.long()]
    (p,) = check(Case([X, I], [Y], reference, {"I": integers(2, 0, 4)}))
    assert not scatters(p)


def test_rows_are_summed_before_they_are_placed():
    """X[b, I[b]] used by many elements: one sum for each b, then one place."""
    X, W, I = tensor("X", 3, 30), tensor("W", 3, 20), tensor("I", 3, dtype="int32")
    Y = compute((3, 20), lambda b, e: if_then_else(inside(I[b], 30), X[b, I[b]] * W[b, e], 0.0), "Y")
    reference = lambda x, w, i: x[torch.arange(3), i.long()][:, None] * w
    (p,) = check(Case([X, W, I], [Y], reference, {"I": integers(2, 0, 29)}))
    assert "dX_0[i0: 3] float64 = sum[" in p.text


def test_the_order_of_additions_is_that_of_the_rows():
    U, I = tensor("U", 3, dtype="float32"), tensor("I", 3, dtype="int32")
    Y = scatter_add(U, I, axis=0, size=1, name="Y")
    rows = torch.tensor([1e8, 1.0, -1e8])
    assert run([U, I], [Y], [rows, torch.zeros(3, dtype=torch.int32)])[0].item() == 0.0  # (1e8 + 1) - 1e8 in float32


def test_an_unguarded_data_dependent_read_names_the_guard():
    X, I, G = tensor("X", 5), tensor("I", 4, dtype="int32"), tensor("G", 4)
    Y = compute((4,), lambda i: X[I[i]] * X[I[i]], "Y")
    with pytest.raises(ExpressionError, match=r"'Y' reads X\[I\[i\]\].*guard it: if_then_else"):
        gradient([Y], [X], [G])


def test_two_data_dependent_indices_are_refused():
    X, I, G = tensor("X", 5, 5), tensor("I", 4, dtype="int32"), tensor("G", 4)
    Y = compute((4,), lambda i: if_then_else(inside(I[i], 5), X[I[i], I[i]], 0.0), "Y")
    with pytest.raises(AutodiffError, match=r"X\[I\[i\], I\[i\]\].*flatten the axes of 'X'"):
        gradient([Y], [X], [G])


def test_index_arguments_are_checked():
    X = tensor("X", 5, 3)
    with pytest.raises(ExpressionError, match="index is float64, must be int32"):
        gather(X, tensor("I", 4, 1), axis=0)
    with pytest.raises(ExpressionError, match="index has 1 axes, must have 2"):
        gather(X, tensor("I", 4, dtype="int32"), axis=0)
    with pytest.raises(ExpressionError, match="index has extent 2 along axis 1, must be 3"):
        gather(X, tensor("I", 4, 2, dtype="int32"), axis=0)
    with pytest.raises(ExpressionError, match="axis 2 is outside the 2 axes of 'X'"):
        scatter_add(X, tensor("I", 5, 1, dtype="int32"), axis=2, size=4)
