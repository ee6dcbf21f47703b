"""A kernel that its rule cannot schedule runs unscheduled, and the kernels around it do not notice."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tests.plan.graphs import both, elementwise, run
from tilegen.build.scheduled import schedule
from tilegen.build.target import resolve
from tilegen.schedules.llvm.walk import Walk


@pytest.fixture
def broken_walk(monkeypatch):
    """The walk rule, failing half-way on backward walks."""
    apply = Walk.apply

    def fail(self, view, decide):
        apply(self, view, decide)
        if view.kernel == "walk1":
            raise RuntimeError("half-way")

    monkeypatch.setattr(Walk, "apply", fail)


def test_the_rest_is_scheduled_and_the_numbers_are_right(broken_walk, caplog):
    instance, sizes = elementwise(channels=16), {"B": 2, "T": 9}
    functions = both(instance)
    with caplog.at_level(logging.WARNING, "tilegen"):
        rules = [part["rule"] for part in schedule(instance, functions["backward"], resolve()).provenance]
    assert rules == ["llvm.walk", "plain"]
    assert "walk1 runs as it was planned, unscheduled: half-way" in caplog.text
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((2, 9, 16)) for name in ("q", "k", "v", "grad_y")}
    forward = run(instance, functions["forward"], values, sizes)
    got = run(instance, functions["backward"], forward | values, sizes)
    tensors = {name: torch.tensor(values[name], requires_grad=True) for name in "qkv"}
    y = instance.mechanism.reference(instance.config, **tensors)
    y = y[0] if isinstance(y, tuple) else y
    for name, want in zip("qkv", torch.autograd.grad(y, list(tensors.values()), torch.tensor(values["grad_y"])), strict=True):
        np.testing.assert_allclose(got[f"grad_{name}"], want, rtol=0, atol=1e-12)
