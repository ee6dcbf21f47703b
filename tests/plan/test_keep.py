"""Shared values stay shared: code does not grow with the depth of a chain."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.plan.graphs import Instance
from tilegen.build import pipeline
from tilegen.build.scheduled import schedule
from tilegen.build.target import resolve
from tilegen.expression import compute, exp
from tilegen.mechanisms import ArgSpec, Mechanism
from tilegen.plan.plan import plan


@dataclass(frozen=True)
class Chain:
    length: int


def chain(config, dims, x):
    y = x
    for _ in range(config.length):
        before = y
        y = compute(x.shape, lambda b, c: before[b, c] * before[b, c] + before[b, c], name="link")
    return (compute(x.shape, lambda b, c: exp(y[b, c]), name="out"),)


MECHANISM = Mechanism(
    "chain_of_the_tests", Chain, ("B",), ("C",), lambda c: (ArgSpec("x", ("B", "C")),), lambda c: (ArgSpec("y", ("B", "C")),),
    chain, lambda config, x: (x,), {"B": 4},
)  # fmt: skip


@pytest.mark.timeout(60)
def test_code_grows_linearly_with_a_chain_of_shared_values():
    def instructions(length: int) -> int:
        instance, target = Instance(MECHANISM, Chain(length), {"C": 16}, "float32"), resolve()
        function = plan(instance, backward=False).functions["forward"]
        return pipeline.compile(schedule(instance, function, target).mod, target.tvm).mod.inspect_source("asm").count("\n")

    short, long = instructions(5), instructions(40)  # substituted, forty links would be 3^40 terms
    assert long < short + 35 * 40
