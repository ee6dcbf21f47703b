"""Every operator as the CUDA code of a GPU, emulated: forward, backward and step against the reference, by the tolerance rule."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.emulator import EmulatedError, EmulatedInstance, EmulatedModule, emulated
from tests.cuda.emulator.module import ORDERS
from tilegen import mechanisms
from tilegen.bench.check import SumsInOwnDtype, judge, require, verdict
from tilegen.bundle import shapes
from tilegen.mechanisms import Instance

DTYPES = ["float32", "bfloat16", "float16"]
T = 37
"""Odd, and a multiple of no tile."""


@dataclass(frozen=True)
class Case:
    """An operator with options and sizes so small that the emulator is quick."""

    op: str
    static: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{key}={value}" for key, value in self.options.items())])

    def instance(self, dtype: str, **options: Any) -> Instance:
        mechanism = mechanisms.get(self.op)
        return Instance(mechanism, mechanism.config(**self.options | options), self.static, dtype)


HEADS = {"D": 16, "E": 16}
CASES = [
    Case("bounded_memory_attention", HEADS | {"N": 16}),
    Case("elementwise_attention", {"C": 19}, {"order": 2}),
    Case("ema", {"C": 19, "N": 3}),
    Case("fast_multipole_attention", {"D": 16}, {"block": 16, "levels": 2}),
    Case("linear_attention", HEADS, {"chunk": 16}),
    Case("local_attention", HEADS, {"window": 20, "chunk": 16}),
    Case("short_long_conv", {"C": 19, "Ks": 4}, sizes={"Kl": 37}),
]
VARIANTS = [
    Case("bounded_memory_attention", HEADS | {"N": 16}, {"normalizer": "fixed"}),
    Case("elementwise_attention", {"C": 19}, {"order": 6, "causal": False}),
    Case("ema", {"C": 19, "N": 3}, {"causal": False}),
    Case("fast_multipole_attention", {"D": 24}, {"block": 32, "levels": 1, "count_bias": True, "causal": False}),
    Case("linear_attention", {"D": 24, "E": 40}, {"chunk": 16, "decay": "token"}),
    Case("linear_attention", HEADS, {"chunk": 32, "normalize": True, "decay": "head"}),
    Case("linear_attention", {"D": 64, "E": 64}, sizes={"B": 1, "H": 1}),
    Case("linear_attention", {"D": 24, "E": 40}, {"chunk": 16, "causal": False}),
    Case("local_attention", HEADS, {"window": 7, "kind": "relu2", "causal": False, "chunk": 16}),
    Case("short_long_conv", {"C": 19, "Ks": 3}, {"causal": False}, sizes={"Kl": 5}),
]


def draw(instance: Instance, case: Case, time: int = T) -> dict[str, Tensor]:
    """Random inputs in the dtype of the instance: logarithms of decays negative, rows that are normalised positive."""
    generator = torch.Generator().manual_seed(time)
    sizes = {"B": 2, "T": time, "H": 2} | case.sizes | instance.sizes()
    given = {}
    for spec in instance.mechanism.inputs(instance.config):
        x = torch.randn([shapes.evaluate(dim, sizes) for dim in spec.shape], generator=generator)
        if spec.name == "decay":
            x = -x.abs()
        if case.options.get("normalize") and spec.name in ("q", "k"):
            x = x.abs() + 0.1
        given[spec.name] = x.to(getattr(torch, instance.dtype))
    return given


class Applied(torch.autograd.Function):
    """The emulated forward and backward of an instance as a differentiable function of its inputs."""

    @staticmethod
    def forward(ctx: Any, functions: EmulatedInstance, *inputs: Tensor) -> tuple[Tensor, ...]:
        config, mechanism = functions.instance.config, functions.instance.mechanism
        ctx.functions = functions
        ctx.given = dict(zip([spec.name for spec in mechanism.inputs(config)], inputs, strict=True))
        ctx.made = functions.run("forward", ctx.given, ("forward", "reverse"))
        ctx.outputs = [spec.name for spec in mechanism.outputs(config)]
        return tuple(ctx.made[name] for name in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grads = {f"grad_{name}": grad.contiguous() for name, grad in zip(ctx.outputs, gradients, strict=True)}
        made = ctx.functions.run("backward", ctx.given | ctx.made | grads, ("forward", "reverse"))
        return None, *(made[f"grad_{name}"] for name in ctx.given)


def differentiable(functions: EmulatedInstance) -> Any:
    """The emulated operator as a function of tensors in the order of its inputs, which it casts as a caller would."""
    instance = functions.instance
    dtypes = [getattr(torch, spec.concrete_dtype(instance.dtype)) for spec in instance.mechanism.inputs(instance.config)]

    def call(*tensors: Tensor) -> list[Tensor]:
        return [*Applied.apply(functions, *(x.to(dtype) for x, dtype in zip(tensors, dtypes, strict=True)))]

    return call


def formula(instance: Instance, names: list[str]) -> Any:
    """The reference as a function of tensors in the order of `names`."""
    return lambda *tensors: instance.mechanism.reference(instance.config, **dict(zip(names, tensors, strict=True)))


def check(case: Case, dtype: str) -> None:
    instance = case.instance(dtype)
    given = draw(instance, case)
    op = differentiable(emulated(instance, ("forward", "backward")))
    require(judge(op, formula(instance, list(given)), list(given.values())))


def test_every_operator_has_a_case() -> None:
    found = [mechanisms.get(name) for name in mechanisms.names()]
    built_in = {one.name for one in found if str(one.expression).startswith("tilegen.ops.") and not one.host}
    # In test_emulated_compaction.py, test_emulated_packed_linear.py and test_emulated_lookup.py.
    elsewhere = {"compact", "extract", "packed_linear", "relative_bias"}
    assert {case.op for case in CASES} | elsewhere == built_in


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: Case, dtype: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_forward_and_backward_of_other_options(case: Case) -> None:
    check(case, "bfloat16")


STEPPED = [case for case in CASES if mechanisms.get(case.op).step is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", STEPPED, ids=str)
def test_steps_continue_a_forward_with_its_state(case: Case, dtype: str) -> None:
    instance, stateful = case.instance(dtype), case.instance(dtype, return_state=True)
    whole = draw(instance, case)
    timed = [spec.name for spec in instance.mechanism.inputs(instance.config) if spec.shape[1:2] == ("T",)]
    at = lambda start, end: {
        spec.name: (whole[spec.name][:, start:end] if spec.name in timed else whole[spec.name]).to(
            getattr(torch, spec.concrete_dtype(dtype))
        )
        for spec in instance.mechanism.inputs(instance.config)
    }
    y, *_ = [spec.name for spec in instance.mechanism.outputs(instance.config)]
    after = emulated(stateful, ("forward",)).run("forward", at(0, T - 2))
    step = emulated(instance, ("step",))
    rows = []
    for t in (T - 2, T - 1):
        state = {name.removesuffix("_out"): x for name, x in after.items() if name.endswith("_out")}
        after = step.run("step", at(t, t + 1) | state, ("forward", "reverse"))
        rows.append(after[y])
    reference = formula(instance, list(whole))
    with SumsInOwnDtype():
        plain = reference(*(x.float() for x in whole.values()))[0]
    exact = reference(*(x.double() for x in whole.values()))[0]
    require([verdict("steps", torch.cat(rows, 1), plain[:, T - 2 :], exact[:, T - 2 :])])


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_results_do_not_depend_on_the_order_of_threads(case: Case) -> None:
    instance = case.instance("bfloat16")
    functions = emulated(instance, ("forward", "backward"))
    given = draw(instance, case)
    made = functions.run("forward", given, tuple(ORDERS))
    grads = {f"grad_{spec.name}": made[spec.name] for spec in instance.mechanism.outputs(instance.config)}
    functions.run("backward", given | made | grads, tuple(ORDERS))


def test_without_any_one_of_its_barriers_a_kernel_races() -> None:
    """Neither is a barrier missing, nor is one too many."""
    case = CASES[4]
    instance = case.instance("bfloat16")
    functions = EmulatedInstance(instance, ("forward",))
    given, source, barrier = draw(instance, case), functions.source, "__syncthreads();"
    places = [match.start() for match in re.finditer(re.escape(barrier), source)]
    assert len(places) > 1
    for at in places:
        functions.module = EmulatedModule(source[:at] + ";" + source[at + len(barrier) :])
        with pytest.raises(EmulatedError, match="race: "):
            functions.run("forward", given)


@pytest.mark.parametrize("time", [1, 16, 65], ids="T{}".format)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_library_serves_every_length(case: Case, time: int) -> None:
    instance = case.instance("bfloat16")
    given = draw(instance, dataclasses.replace(case, sizes=case.sizes | {"B": 1, "H": 3}), time)
    op = differentiable(emulated(instance, ("forward", "backward")))
    require(judge(op, formula(instance, list(given)), list(given.values()), backward=time > 1))
