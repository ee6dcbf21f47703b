"""Random nested index maps of up to three variables, against direct enumeration, and every read proved in bounds."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.autodiff.executor import build, prim_func
from tilegen.autodiff import gradient
from tilegen.expression import all_of, compute, floordiv, floormod, if_then_else, placeholder, reduce_axis, reduce_sum
from tilegen.expression.printer import graph_text

MAPS, BATCH = 160, 20

leaf = st.tuples(st.just("var"), st.integers(0, 2))
nested = lambda inner: st.one_of(
    st.tuples(st.just("add"), inner, inner, st.sampled_from([1, 1, 1, -1])),
    st.tuples(st.just("mul"), inner, st.integers(2, 4)),
    st.tuples(st.just("shift"), inner, st.integers(-3, 3)),
    st.tuples(st.sampled_from(["div", "mod"]), inner, st.integers(2, 4)),
)
index = st.one_of(leaf, nested(leaf), nested(nested(leaf)), nested(nested(nested(leaf))))
index_map = st.tuples(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),  # extents of the variables
    st.integers(1, 3),  # how many of them are axes of the stage, the others are reduced
    st.lists(index, min_size=1, max_size=2),
    st.booleans(),  # whether the read is trimmed by a guard
)
checked = {"maps": 0}


def value(tree, variables):
    """The index as an expression of `variables`, which may be ints or TVM variables."""
    kind, *rest = tree
    if kind == "var":
        return variables[rest[0] % len(variables)]
    inner = value(rest[0], variables)
    if kind == "add":
        return inner + rest[2] * value(rest[1], variables)
    if kind == "mul":
        return inner * rest[1]
    if kind == "shift":
        return inner + rest[1]
    return (floordiv if kind == "div" else floormod)(inner, rest[1])


class Map:
    """One stage that reads X at a random map and W at the point itself, with its gradients by enumeration."""

    def __init__(self, drawn):
        self.extents, spatial, self.trees, trim = drawn
        self.spatial = min(spatial, len(self.extents))
        points = list(itertools.product(*map(range, self.extents)))
        indices = [[value(tree, point) for point in points] for tree in self.trees]
        self.offsets = [-min(i) for i in indices]
        full = [max(i) + o + 1 for i, o in zip(indices, self.offsets, strict=True)]
        self.shape = [n - 1 if trim and n > 2 else n for n in full]
        self.trimmed = [n != m for n, m in zip(full, self.shape, strict=True)]
        places = [[i[k] + o for i, o in zip(indices, self.offsets, strict=True)] for k in range(len(points))]
        self.reads = [(p, at) for p, at in zip(points, places, strict=True) if all(map(int.__lt__, at, self.shape))]
        self.X, self.W = placeholder(self.shape, "float64", "X"), placeholder(self.extents, "float64", "W")
        self.G = placeholder(self.extents[: self.spatial], "float64", "G")
        self.Y = compute(self.extents[: self.spatial], lambda *i: self.body(list(i)), "Y")
        self.adjoint = gradient([self.Y], [self.X, self.W], [self.G], limit=1e12)  # proves every read

    def body(self, axes):
        inner = [reduce_axis(n, f"r{k}") for k, n in enumerate(self.extents[self.spatial :])]
        point = axes + [r.var for r in inner]
        at = [value(tree, point) + o for tree, o in zip(self.trees, self.offsets, strict=True)]
        read = self.X(*at) * self.W(*point)
        guards = [a < n for a, n, t in zip(at, self.shape, self.trimmed, strict=True) if t]
        read = if_then_else(all_of(*guards), read, 0.0) if guards else read
        return reduce_sum(read, inner) if inner else read

    def arrays(self):
        rng = np.random.default_rng(0)
        return rng.normal(size=self.shape), rng.normal(size=self.extents), rng.normal(size=self.extents[: self.spatial])

    def expected(self, x, w, g):
        dx, dw = np.zeros_like(x), np.zeros_like(w)
        for point, at in self.reads:
            dx[tuple(at)] += g[point[: self.spatial]] * w[point]
            dw[point] += g[point[: self.spatial]] * x[tuple(at)]
        return dx, dw


@settings(
    max_examples=MAPS // BATCH,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(index_map, min_size=BATCH, max_size=BATCH))
def check_batch(drawn):
    maps = [Map(d) for d in drawn]
    module = build({f"map{k}": prim_func([m.X, m.W, m.G], m.adjoint.tensors) for k, m in enumerate(maps)})
    for k, m in enumerate(maps):
        arrays = m.arrays()
        results = [torch.full(shape, float("nan"), dtype=torch.float64) for shape in (m.shape, m.extents)]
        module[f"map{k}"](*map(torch.from_numpy, arrays), *results)
        for got, want in zip(results, m.expected(*arrays), strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12, err_msg=graph_text([m.Y, *m.adjoint]))
    checked["maps"] += len(maps)


def test_random_index_maps():
    checked["maps"] = 0
    check_batch()
    assert checked["maps"] >= MAPS
