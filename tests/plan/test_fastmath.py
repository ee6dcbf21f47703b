"""Functions written out for vectors: accuracy in units in the last place, and special values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx

from tests.plan.graphs import aligned
from tilegen.build import pipeline
from tilegen.build.target import resolve
from tilegen.plan.fastmath import vectorisable
from tilegen.plan.keep import keep

INF, NAN = math.inf, math.nan
SPECIAL = [0.0, INF, -INF, NAN, 88.72, 88.73, -87.3, -103.9, -104.1, 1e-30, 1e-7, 1.0]
# name: (reference, largest error in ulp, random arguments)
CASES = {
    "exp": (torch.exp, 1.0, lambda x: 30 * x),
    "exp2": (torch.exp2, 80.0, lambda x: 30 * x),
    "log": (torch.log, 1.0, lambda x: torch.exp(20 * x)),
    "log1p": (torch.log1p, 3.0, lambda x: torch.exp(5 * x)),
    "tanh": (torch.tanh, 3.5, lambda x: 3 * x),
    "sigmoid": (torch.sigmoid, 4.0, lambda x: 5 * x),
}


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    source = te.placeholder((len(x),), "float32", name="x")
    call = getattr(tirx, name)
    y = te.compute((len(x),), lambda i: vectorisable(call(source[i]), lambda _, value: keep(value)), name="y")
    lib = pipeline.compile(tvm.IRModule({"main": te.create_prim_func([source, y])}), resolve().tvm)
    out = aligned(np.full(len(x), np.nan, "float32"))
    lib["main"](aligned(x), out)
    return out


@pytest.mark.parametrize("name", CASES)
def test_error_in_units_in_the_last_place(name):
    reference, most, argument = CASES[name]
    x = argument(torch.randn(4096, generator=torch.Generator().manual_seed(0))).float()
    want = reference(x.double())
    got = torch.from_numpy(evaluate(name, x.numpy())).double()
    normal = want.abs() > 1e-37
    ulp = torch.from_numpy(np.spacing(np.abs(want.float().numpy()))).double()
    error = ((got - want).abs() / ulp)[normal & torch.isfinite(want.float())]
    assert error.max() <= most


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "tanh"])
def test_special_values(name):
    x = np.array(SPECIAL, "float32")
    with np.errstate(all="ignore"):
        want = CASES[name][0](torch.from_numpy(x).double()).float().numpy()
    np.testing.assert_allclose(evaluate(name, x), want, rtol=1e-6, atol=1e-44)
