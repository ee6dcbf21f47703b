"""Walks there and back as one kernel: marks of the forward, spans gone through in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda import walks
from tests.cuda.emulator import emulated
from tests.cuda.emulator.module import ORDERS
from tests.cuda.test_emulated_ops import Case, differentiable, draw, formula
from tilegen.bench.check import judge, require
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.retrace import SPAN, Retrace, retraced
from tilegen.plan.gpu.vanish import vanishes
from tilegen.plan.plan import plan

EA = Case("elementwise_attention", {"C": 6}, {"order": 2})


def joined(instance: Instance) -> list[Any]:
    return [kernel for kernel in retraced(plan(instance).functions)["backward"].kernels if isinstance(kernel, Retrace)]


# From two positions on: of one, all gradients but that of v are zero, and the tolerance rule has no scale.
@pytest.mark.parametrize("T", [2, SPAN, SPAN + 1, 3 * SPAN - 7, 3 * SPAN], ids=lambda T: f"T{T}")
def test_gradients_over_any_number_of_spans(T: int) -> None:
    instance = EA.instance("bfloat16")
    assert len(joined(instance)) == 1
    given = draw(instance, EA, T)
    op = differentiable(emulated(instance, ("forward", "backward")))
    require(judge(op, formula(instance, list(given)), list(given.values())))


def test_nothing_is_written_for_every_step() -> None:
    instance = walks.of("elementwise_attention", "bfloat16", {"C": 64}, order=2)
    functions = retraced(plan(instance).functions)
    (kernel,) = functions["backward"].kernels
    assert isinstance(kernel, Retrace)
    assert not [arg for arg in functions["backward"].args if arg.role == "workspace"]
    assert [arg.name for arg in functions["forward"].args if arg.role == "saved"] == ["saved_marks"]
    assert {tensor.op.name for tensor in kernel.loads} == {"q", "k", "v", "grad_y", "marks"}


def test_what_a_walk_does_for_itself_stays_apart() -> None:
    assert not joined(walks.of("ema", "bfloat16", {"C": 8, "N": 2}))
    assert not joined(walks.of("elementwise_attention", "bfloat16", {"C": 8}, order=2, causal=False))


def test_terms_without_a_gradient_do_not_vanish() -> None:
    (kernel,) = joined(walks.of("elementwise_attention", "bfloat16", {"C": 8}, order=2))
    names = {tensor.op.name: tensor for tensor in kernel.kept}
    assert vanishes(names["dnumerator"], kernel.silent)
    assert vanishes(names["ddenominator"], kernel.silent)
    assert not vanishes(names["m"], kernel.silent)
    assert not vanishes(names["dnumerator"], [])


def test_gradients_are_bit_equal_in_every_order() -> None:
    instance = EA.instance("float32")
    given = draw(instance, EA, SPAN + 5)
    functions = emulated(instance, ("forward", "backward"))
    made = functions.run("forward", given, ORDERS)
    back = functions.run("backward", given | made | {"grad_y": torch.randn_like(made["y"])}, ORDERS)
    assert all(back[f"grad_{name}"].isfinite().all() for name in "qkv")
