"""Convolutions on tensor cores: found in plans, right for every decision and all lengths, and only where they belong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cuda.emulator import EmulatedModule
from tests.cuda.emulator.module import aligned
from tests.cuda.walks import DTYPES, of, sizes_of
from tilegen.bench.check import norm, verdict
from tilegen.build import cuda
from tilegen.build.target import resolve
from tilegen.mechanisms import Instance
from tilegen.plan.convolutions import convolution
from tilegen.plan.gpu.func import device_func
from tilegen.plan.gpu.math import math_of
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan, plan
from tilegen.schedules.cuda.convolution import Convolution
from tilegen.schedules.registry import device_rule_for
from tilegen.schedules.rule import Fixed, Gpu

SMALL = {"rows": 16, "columns": 16, "span": 256, "channels": 2}


def conv(dtype: str = "bfloat16", channels: int = 4, **options: bool) -> Instance:
    return of("short_long_conv", dtype, {"C": channels, "Ks": 3}, **options)


def kernels(instance: Instance) -> dict[str, list[Kernel]]:
    return {name: [k for k in f.kernels if convolution(k)] for name, f in plan(instance).functions.items()}


def text_of(instance: Instance, function: FunctionPlan, gpu: Gpu, **chosen: int) -> str:
    """The CUDA text of a function, `chosen` in place of the decisions for its convolutions."""
    made = []
    for kernel in function.kernels:
        sizes = device_rule_for(kernel, "cuda").decide(kernel, gpu, Fixed())
        made.append((kernel, sizes | chosen if "span" in sizes else sizes))
    params = [(arg.name, arg.tensor) for arg in function.args]
    func = device_func(params, made, gpu, math_of(instance.dtype), "tilegen")
    return cuda.generate({"tilegen": func}, resolve(f"sm_{gpu.capability}"))


class Emulated:
    """Forward and backward with given decisions."""

    def __init__(self, instance: Instance, **chosen: int):
        self.instance, self.plan = instance, plan(instance)
        self.modules = {
            name: EmulatedModule(text_of(instance, function, Gpu(), **chosen)) for name, function in self.plan.functions.items()
        }

    def check(self, batch: int, time: int, taps: int, order: str = "forward") -> None:
        """Compare with the reference by the tolerance rule."""
        generator = torch.Generator().manual_seed(time)
        sizes = {"B": batch, "T": time, "Kl": taps, **self.instance.static}
        given: dict[str, Tensor] = {}
        for function in self.plan.functions.values():
            for arg in function.args:
                if arg.role in ("input", "grad_output") and arg.name not in given:
                    shape = sizes_of(function, arg.name, sizes)
                    given[arg.name] = torch.randn(shape, generator=generator).to(DTYPES[str(arg.tensor.dtype)])
        made: dict[str, Tensor] = {}
        for name, function in self.plan.functions.items():
            arrays = []
            for arg in function.args:
                array = aligned(sizes_of(function, arg.name, sizes), DTYPES[str(arg.tensor.dtype)])
                arrays.append(array.copy_(given[arg.name]) if arg.name in given else array)
            self.modules[name]["tilegen"](*arrays, order=order)
            made |= {arg.name: array for arg, array in zip(function.args, arrays, strict=True) if arg.name not in given}
        found = [self.reference(given, dtype) for dtype in (torch.float32, torch.float64)]
        for name in found[0]:
            judged = verdict(name, made[name], found[0][name], found[1][name], norm)
            assert judged.passed, (sizes, judged)

    def reference(self, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        names = ("x", "short", "long")
        leaves = [given[name].to(dtype).requires_grad_() for name in names]
        (y,) = self.instance.mechanism.reference(self.instance.config, *leaves)
        gradients = torch.autograd.grad(y, leaves, given["grad_y"].to(dtype))
        return {"y": y.detach(), **{f"grad_{name}": x for name, x in zip(names, gradients, strict=True)}}


@pytest.mark.parametrize(
    "chosen",
    [
        SMALL,
        SMALL | {"rows": 32, "channels": 1},
        SMALL | {"rows": 64, "span": 512, "channels": 4},
        SMALL | {"columns": 32, "channels": 8},
        SMALL | {"rows": 32, "columns": 64, "span": 1024},
    ],
    ids=lambda chosen: "x".join(str(n) for n in chosen.values()),
)
def test_every_decision_gives_the_same_convolution(chosen: dict[str, int]) -> None:
    """With more channels than a block has and no multiple of them, and several tiles of results."""
    emulated = Emulated(conv(channels=6), **chosen)
    for order in ("forward", "reverse"):
        emulated.check(2, 300, 290, order)


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "two-sided"])
def small(request: pytest.FixtureRequest) -> Emulated:
    return Emulated(conv("float16", causal=request.param), **SMALL)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(1, 600), st.integers(0, 300))
@example(1, 1, 0)
@example(1, 1, 200)
@example(2, 513, 0)
@example(1, 257, 128)
@example(1, 600, 299)
def test_kernels_of_any_length_beside_sequences_of_any_length(small: Emulated, batch: int, time: int, half: int) -> None:
    small.check(batch, time, 2 * half + 1)


def test_values_and_both_gradients_are_convolutions() -> None:
    found = kernels(conv())
    forward, signal, taps = (convolution(k) for k in [*found["forward"], *found["backward"]])
    assert forward is not None and signal is not None and taps is not None
    assert (forward.axis, forward.sign, str(forward.lower), forward.upper) == (1, -1, "0", None)
    assert (signal.axis, signal.sign, signal.lower, str(signal.upper)[0]) == (1, 1, None, "T")
    # Positions of the taps' gradient are lags, it sums over positions, and the other reduced axis is the batch.
    assert (taps.axis, taps.over, taps.sign, str(taps.upper)) == (0, 1, -1, "1")


def test_what_is_no_convolution_is_left_alone() -> None:
    """Of packed sequences a position sees what tables say; the short kernel's gradients have no position; scans are scans."""
    others = [
        conv(packed=True),
        of("ema", "bfloat16", {"C": 8, "N": 2}, causal=False),
        of("elementwise_attention", "bfloat16", {"C": 8}),
    ]
    assert [kernels(instance) for instance in others] == [{"forward": [], "backward": []}] * 3
    assert sum(len(found) for found in kernels(conv()).values()) == 3


@pytest.mark.parametrize(("dtype", "capability"), [("float32", 90), ("float16", 75)])
def test_elsewhere_a_convolution_is_a_sum_like_others(dtype: str, capability: int) -> None:
    instance, gpu = conv(dtype), Gpu(capability)
    assert "mma.sync" not in text_of(instance, plan(instance).functions["forward"], gpu)
    assert "mma.sync" in text_of(conv(), plan(conv()).functions["forward"], Gpu())


@pytest.mark.parametrize(
    "gpu", [Gpu(), Gpu(80, 108, 166912, 167936), Gpu(86, 84, 101376, 102400)], ids=lambda gpu: f"sm_{gpu.capability}"
)
def test_the_default_fits_a_block(gpu: Gpu) -> None:
    instance = conv(channels=768)
    for function in plan(instance).functions.values():
        assert "mma.sync" in text_of(instance, function, gpu)
        assert all(Convolution().fits(k) == (convolution(k) is not None) for k in function.kernels)
