"""Tile kernels that walk: results in kernels of their own, scores that stay in registers, copies past the registers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.cuda.emulator import EmulatedModule
from tests.cuda.emulator.module import ORDERS, aligned
from tilegen import mechanisms
from tilegen.bench.check import verdict
from tilegen.build import cuda, nvcc
from tilegen.build.target import resolve
from tilegen.bundle import shapes
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.func import device_func
from tilegen.plan.gpu.math import math_of
from tilegen.plan.plan import FunctionPlan, plan
from tilegen.schedules.cuda.tile import Tile
from tilegen.schedules.rule import Fixed, Gpu

SIZES = (1, 75, 2)


def linear(width: int, dtype: str = "bfloat16", **options: Any) -> Instance:
    mechanism = mechanisms.get("linear_attention")
    return Instance(mechanism, mechanism.config(**options), {"D": width, "E": width}, dtype)


def text_of(function: FunctionPlan, decisions: dict[str, int] | None = None) -> str:
    return cuda.generate({"tilegen": device_part(function, decisions)}, resolve("sm_90"))


def device_part(function: FunctionPlan, decisions: dict[str, int] | None = None) -> Any:
    params = [(arg.name, arg.tensor) for arg in function.args]
    kernels = [(kernel, decisions or Tile().decide(kernel, Gpu(), Fixed())) for kernel in function.kernels]
    kernels = [(kernel, {**made, "apart": made.get("apart", 0) if len(kernel.emits) > 1 else 0}) for kernel, made in kernels]
    return device_func(params, kernels, Gpu(), math_of("bfloat16"), "tilegen")


def bodies(text: str) -> list[str]:
    """The text of every kernel, in order."""
    return re.split(r'extern "C" __global__ [^{;]*\{', text)[1:]


def tensors(seed: int, count: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [aligned((*SIZES, width), torch.bfloat16) for _ in range(count)]
    return [x.copy_(torch.randn(x.shape, generator=generator)) for x in found]


@pytest.mark.parametrize(
    ("apart", "parts", "warps", "prefetch", "whole"),
    [(0, 1, 2, 1, 0), (0, 2, 2, 2, 0), (0, 1, 4, 0, 0), (1, 1, 2, 2, 0), (1, 2, 4, 1, 0), (1, 2, 2, 0, 0), (1, 2, 2, 1, 2), (1, 2, 2, 2, 3)],
    ids=lambda n: str(n),
)
def test_every_decision_gives_the_same_gradients(apart, parts, warps, prefetch, whole):
    """Of few walks and of many, where there are two: with `whole` 2 and 3 they are either."""
    instance = linear(32, chunk=32)
    function = plan(instance).functions["backward"]
    decisions = {"warps": warps, "parts": parts, "prefetch": prefetch, "apart": apart, "stages": prefetch + 1}
    decisions |= {"whole": whole, "whole_warps": 4, "whole_prefetch": whole - 1, "whole_stages": 3}
    run = EmulatedModule(text_of(function, decisions))
    q, k, v, do = tensors(0, 4, 32)
    reference = instance.mechanism.reference

    def gradients(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        (o,) = reference(instance.config, *given)
        return dict(zip("qkv", torch.autograd.grad(o, given, do.to(dtype)), strict=True))

    exact, plain = gradients(torch.float64), gradients(torch.float32)
    given = {"q": q, "k": k, "v": v, "grad_o": do}
    for order in ORDERS:
        made = {arg.name: given.get(arg.name, torch.full_like(q, float("nan"))) for arg in function.args}
        made = {name: x if name in given else aligned(x.shape, x.dtype).copy_(x) for name, x in made.items()}
        run["tilegen"](*made.values(), order=order)
        for name in "qkv":
            found = verdict(name, made[f"grad_{name}"], plain[name], exact[name])
            assert found.passed, (order, found)


def test_gradients_of_keys_and_values_are_walks_of_their_own():
    """Where states are large, each is shared out over its own columns."""
    function = plan(linear(128)).functions["backward"]
    (both,) = [kernel for kernel in function.kernels if len(kernel.emits) == 2]
    made = Tile().decide(both, Gpu(), Fixed())
    assert (made["apart"], made["parts"]) == (1, 4)
    for one, result in zip(both.apart(), both.emits, strict=True):
        assert one.emits == [result] and set(one.locals) < set(both.locals)
    assert len(bodies(text_of(function))) == 3 + 2  # of few walks, and of many


def test_a_launch_is_chosen_by_the_number_of_walks():
    function = plan(linear(64)).functions["forward"]
    (kernel,) = function.kernels
    made = Tile().decide(kernel, Gpu(processors=8), Fixed())
    assert made["whole"] == 5
    func = device_func([(arg.name, arg.tensor) for arg in function.args], [(kernel, made)], Gpu(), math_of("bfloat16"), "tilegen")
    _, table = cuda.kernels({"tilegen": func}, resolve("sm_90"))
    grids = {n: [one["grid"] for one in shapes.chosen(table["tilegen"], {"B": 1, "T": 9, "H": n})] for n in (4, 5)}
    assert grids == {4: [["(B * H)", 2, 1]], 5: [["(B * H)", 1, 1]]}


def test_sums_of_two_products_take_the_registers_of_one():
    decisions = {"warps": 4, "parts": 2, "prefetch": 2}
    (body,) = bodies(text_of(plan(linear(64)).functions["forward"], decisions))
    assert "past" in body and "inside" not in body
    (body,) = bodies(text_of(plan(linear(64, decay="head")).functions["forward"], decisions))
    assert "past" in body and "inside" in body  # one is decayed before it is added


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_scores_stay_in_registers(name):
    """One barrier a step, and nothing stored to shared memory but tiles and a copy of the state."""
    decisions = {"warps": 4, "parts": 2, "prefetch": 2, "apart": 1}
    for body in bodies(text_of(plan(linear(64)).functions[name], decisions)):
        assert body.count("__syncthreads();") == 1


def test_tiles_that_are_copied_as_they_are_pass_no_register():
    function = plan(linear(64)).functions["forward"]
    decisions = {"warps": 4, "parts": 2, "prefetch": 2}
    (body,) = bodies(text_of(function, decisions))
    assert body.count("tilegen_copy(") == 6  # of q, k and v, before the walk and in it
    assert body.count("tilegen_copied(") == 1
    (body,) = bodies(text_of(function, {**decisions, "prefetch": 1}))
    assert "tilegen_copy(" not in body
    (body,) = bodies(text_of(function, {**decisions, "stages": 3}))  # of the first two steps, and two steps ahead
    assert body.count("tilegen_copy(") == 9
    assert body.count("tilegen_copied_but_0(") == 1
    single = plan(linear(64, "float32")).functions["forward"]
    assert "tilegen_copy(" not in text_of(single, decisions)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_default_sizes_do_not_spill(width):
    target = resolve("sm_90")
    for name, function in plan(linear(width)).functions.items():
        for made in nvcc.examine(cuda.kernels({"tilegen": device_part(function)}, target)[0], "sm_90"):
            assert made.stack == made.spill_stores == made.spill_loads == 0, (name, made)
