"""Data-dependent reads end to end: operators with gathers have backward kernels, deterministic ones."""

from __future__ import annotations

import pytest
import torch

import tilegen
from tilegen.expression import (
    ceildiv,
    compute,
    const,
    floordiv,
    floormod,
    gather,
    if_then_else,
    reduce_axis,
    reduce_sum,
    scatter_add,
)


@tilegen.mechanism(inputs={"x": "B N C", "index": "int32: B M"}, outputs={"y": "B M C"}, symbolic=("B", "N", "M"))
def rows_of_the_tests(config, dims, x, index):
    places = compute((dims.B, dims.M, 1), lambda b, m, _: index[b, m], name="places")
    return (gather(x, places, axis=1, name="y"),)


@tilegen.mechanism(inputs={"x": "B N C", "index": "int32: B M"}, outputs={"y": "B M C"}, symbolic=("B", "N", "M"))
def distinct_rows_of_the_tests(config, dims, x, index):
    places = compute((dims.B, dims.M, 1), lambda b, m, _: index[b, m], name="places")
    return (gather(x, places, axis=1, unique=True, name="y"),)


@tilegen.mechanism(inputs={"x": "B N C", "index": "int32: B M C"}, outputs={"y": "B M C"}, symbolic=("B", "N", "M"))
def elements_of_the_tests(config, dims, x, index):
    return (gather(x, index, axis=1, name="y"),)


@tilegen.mechanism(inputs={"x": "B N", "index": "int32: B M"}, outputs={"y": "B M"}, symbolic=("B", "N", "M"))
def last_axis_of_the_tests(config, dims, x, index):
    return (gather(x, index, axis=1, name="y"),)


@tilegen.mechanism(inputs={"x": "N", "index": "int32: M"}, outputs={"y": "M"}, symbolic=("N", "M"))
def lone_axis_of_the_tests(config, dims, x, index):
    return (gather(x, index, axis=0, name="y"),)


@tilegen.mechanism(inputs={"x": "B N C", "w": "B N C", "index": "int32: B N"}, outputs={"y": "B N"}, symbolic=("B", "N"))
def tiles_of_the_tests(config, dims, x, w, index):
    """y[n] = sum over c of exp(w)[n, c] x[index[n], c]: a gathered operand of a reduction inside tiles of four."""
    zero, c = const(0, dims.acc), reduce_axis(dims.C, "c")
    places = compute((dims.B, dims.N, 1), lambda b, n, _: index[b, n], name="places")
    found = gather(x, places, axis=1, name="found")
    tiles = (dims.B, ceildiv(dims.N, 4), 4, dims.C)
    cut = lambda z, name: compute(
        tiles, lambda b, t, i, c: if_then_else(t * 4 + i < dims.N, z[b, t * 4 + i, c].astype(dims.acc), zero), name=name
    )
    X, W = cut(found, "X"), cut(w, "W")
    s = compute(tiles[:3], lambda b, t, i: reduce_sum(X[b, t, i, c.var] * W[b, t, i, c.var], c), name="s")
    return (compute((dims.B, dims.N), lambda b, n: s[b, floordiv(n, 4), floormod(n, 4)].astype(dims.io), name="y"),)


@tilegen.mechanism(inputs={"x": "B N C", "index": "int32: B N"}, outputs={"y": "B N C"}, symbolic=("B", "N"))
def placed_rows_of_the_tests(config, dims, x, index):
    """Rows of squares added up at their places: a scatter-add of the forward, read by a stage after it."""
    squares = compute(x.shape, lambda b, n, c: x[b, n, c] * x[b, n, c], name="squares")
    places = compute((dims.B, dims.N, 1), lambda b, n, _: index[b, n], name="places")
    placed = scatter_add(squares, places, axis=1, size=dims.N, name="placed")
    return (compute(x.shape, lambda b, n, c: placed[b, n, c] * 2 + placed[b, dims.N - 1 - n, c], name="y"),)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def integers(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).int()


def inside(index, size):
    return (index >= 0) & (index < size)


@pytest.mark.parametrize("channels", [1, 3, 16], ids="C{}".format)
def test_rows_may_repeat_and_be_missing(channels):
    """Places from -2 to N + 1, nine of them among five rows."""
    x, index = double(2, 5, channels), integers(-2, 7, 2, 9)
    y = rows_of_the_tests(x, index)
    at = index.long().clamp(0, 4)[..., None].expand(2, 9, channels)
    torch.testing.assert_close(y, torch.where(inside(index, 5)[..., None], x.gather(1, at), 0.0), rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda x: rows_of_the_tests(x, index), x)


def test_a_place_for_every_element():
    x, index = double(2, 5, 16), integers(-2, 7, 2, 9, 16)
    assert torch.autograd.gradcheck(lambda x: elements_of_the_tests(x, index), x)


def test_places_along_the_last_axis_and_along_the_only_one():
    x, index = double(3, 5), integers(-1, 6, 3, 9)
    assert torch.autograd.gradcheck(lambda x: last_axis_of_the_tests(x, index), x)
    assert torch.autograd.gradcheck(lambda x: lone_axis_of_the_tests(x, index[0]), double(5))


def test_distinct_rows():
    x = double(2, 9, 16)
    index = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(s))[:6] for s in range(2)]).int()
    assert torch.autograd.gradcheck(lambda x: distinct_rows_of_the_tests(x, index), x)


def test_a_gather_before_a_reduction_inside_tiles():
    x, w, index = double(2, 7, 5), double(2, 7, 5, seed=1), integers(-1, 8, 2, 7)
    assert torch.autograd.gradcheck(lambda x, w: tiles_of_the_tests(x, w, index), (x, w))


def test_a_scatter_add_of_the_forward():
    x, index = double(2, 7, 3), integers(-1, 8, 2, 7)
    y = placed_rows_of_the_tests(x, index)
    rows = torch.where(inside(index, 7)[..., None], x * x, 0.0)
    placed = torch.zeros_like(x).scatter_add(1, index.long().clamp(0, 6)[..., None].expand(2, 7, 3), rows)
    torch.testing.assert_close(y, placed * 2 + placed.flip(1))
    assert torch.autograd.gradcheck(lambda x: placed_rows_of_the_tests(x, index), x)


def test_rows_are_added_in_their_order_on_every_run():
    """In float32, where order shows: what a serial loop gives, bit by bit, whatever the threads do."""
    generator = torch.Generator().manual_seed(0)
    x, index = torch.randn(3, 40, 64, generator=generator).requires_grad_(), integers(0, 40, 3, 4000)
    upstream = torch.randn(3, 4000, 64, generator=generator) * torch.logspace(-4, 4, 4000)[:, None]
    runs = [torch.autograd.grad(rows_of_the_tests(x, index), x, upstream)[0] for _ in range(5)]
    serial = torch.zeros(3, 40, 64)
    for m in range(4000):
        serial[torch.arange(3), index[:, m].long()] += upstream[:, m]
    assert all(torch.equal(run, serial) for run in runs)
