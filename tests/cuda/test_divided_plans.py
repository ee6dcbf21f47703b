"""What a plan becomes for a GPU: walks with too many states divided, long sums of few results added in two stages."""

from __future__ import annotations

import pytest

from tests.cuda import walks
from tests.cuda.emulator import emulated
from tests.cuda.test_emulated_ops import Case, differentiable, draw, formula
from tilegen.bench.check import judge, require
from tilegen.plan.gpu.divide import MOST, divided
from tilegen.plan.gpu.partial import partial
from tilegen.plan.plan import FunctionPlan, plan

AVERAGES = Case("ema", {"C": 6, "N": 12})


def backward(operator: str, static: dict[str, int], **options: int) -> FunctionPlan:
    return plan(walks.of(operator, "bfloat16", static, **options)).functions["backward"]


def test_walks_with_too_many_states_are_divided() -> None:
    function = backward("ema", {"C": 64, "N": 16})
    parts = divided(function)
    largest = max(function.kernels, key=lambda kernel: len(kernel.anchors))
    assert len(largest.anchors) > MOST
    assert all(len(kernel.anchors) <= MOST for kernel in parts.kernels)
    for of in (lambda kernel: kernel.anchors, lambda kernel: kernel.writes()):
        before = [tensor for kernel in function.kernels for tensor in of(kernel)]
        after = [tensor for kernel in parts.kernels for tensor in of(kernel)]
        assert sorted(map(hash, before)) == sorted(map(hash, after))
    names = [kernel.name for kernel in parts.kernels]
    assert len(names) == len(set(names))


def test_states_of_one_result_stay_together() -> None:
    function = backward("elementwise_attention", {"C": 64}, order=6)
    assert divided(function) is function


def test_gradients_of_a_divided_walk() -> None:
    instance = AVERAGES.instance("bfloat16")
    given = draw(instance, AVERAGES, 45)
    functions = emulated(instance, ("forward", "backward"))
    require(judge(differentiable(functions), formula(instance, list(given)), list(given.values())))


def test_long_sums_of_few_results_have_two_stages() -> None:
    function = backward("short_long_conv", {"C": 768, "Ks": 4})
    made = partial(function)
    (kernel,) = [kernel for kernel in made.kernels if kernel.partial is not None]
    parts, anchors, *space = [int(n) for n in kernel.partial.shape]
    assert (parts, anchors, space) == (16, len(kernel.anchors), [768])
    assert [arg.role for arg in made.args if arg.tensor is kernel.partial] == ["workspace"]
    text = walks.text(walks.of("short_long_conv", "bfloat16", {"C": 768, "Ks": 4}), made)
    launches = text.count("__global__") // 2
    assert launches == len(made.kernels) + 1


@pytest.mark.parametrize("T", [1, 37, 700], ids=lambda T: f"T{T}")
def test_parts_of_sums_are_added_whatever_their_number(T: int) -> None:
    case = Case("short_long_conv", {"C": 6, "Ks": 3}, sizes={"Kl": 5})
    instance = case.instance("float32")
    given = draw(instance, case, T)
    functions = emulated(instance, ("forward", "backward"))
    require(judge(differentiable(functions), formula(instance, list(given)), list(given.values())))
