"""Products of float32 tensors in TF32: as exact as products of rounded operands, and no more; float32 unless it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda.emulator import EmulatedInstance
from tests.cuda.test_emulated_ops import HEADS, Case, differentiable, draw, formula
from tests.cuda.test_emulated_packed_linear import instance as packed_linear
from tilegen.bench.check import require, verdict
from tilegen.build import cuda, nvcc
from tilegen.build.library import scheduled_parts
from tilegen.build.target import resolve
from tilegen.cli.instance import instance
from tilegen.errors import TargetError
from tilegen.ops.linear_attention.reference import pairwise

aten = torch.ops.aten


def tf32(x: Tensor) -> Tensor:
    """To ten bits after the point, ties away from zero."""
    return ((x.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


class ProductsInTf32(TorchDispatchMode):
    """What tensor cores make of torch's products of float32 matrices, those of gradients too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.bmm.default) and args[0].dtype is torch.float32:
            args = [tf32(x.contiguous()) for x in args]
        return func(*args, **(kwargs or {}))


def results(function: Callable[..., Any], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The outputs of a function and the gradients of its inputs."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    outputs = list(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(y.shape, generator=generator).to(dtype) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, seeds)]


CASES = [
    (Case("linear_attention", {"D": 24, "E": 40}, {"chunk": 16, "decay": "head"}), pairwise),
    (Case("local_attention", HEADS, {"window": 20, "chunk": 16}), None),
]


@pytest.mark.parametrize(("case", "products"), CASES, ids=["linear_attention", "local_attention"])
def test_results_are_those_of_rounded_operands(case: Case, products: Callable[..., Any] | None) -> None:
    """The tolerance rule holds against the formula with operands in TF32, and for no result against that in float32."""
    made = case.instance("float32")
    given = draw(made, case, 20)
    inputs = list(given.values())
    function = partial(products, made.config) if products else formula(made, list(given))
    own = results(differentiable(EmulatedInstance(made, ("forward", "backward"), tf32=True)), inputs, torch.float32)
    exact, plain = results(function, inputs, torch.float64), results(function, inputs, torch.float32)
    with ProductsInTf32():
        rounded = results(function, inputs, torch.float32)
    require([verdict(f"result {i}", *each) for i, each in enumerate(zip(own, rounded, exact, strict=True))])
    assert not any(verdict("", *each).passed for each in zip(own, plain, exact, strict=True))


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_products_of_packed_rows(function: str) -> None:
    made = packed_linear("float32")
    functions = EmulatedInstance(made, (function,), tf32=True)
    assert "cp.async" in functions.source and "mma.sync" in functions.source
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, upstream = (
        torch.randn(shape, generator=generator) for shape in ((150, 160), (136, 160), (136,), (150, 136))
    )
    given = {"x": x, "weight": weight, "bias": bias, "count": torch.tensor([70], dtype=torch.int32), "grad_y": upstream}
    own = functions.run(function, given)
    pairs = {"y": (x, weight.T), "grad_x": (upstream, weight), "grad_weight": (upstream[:70].T, x[:70])}
    for name, (left, right) in pairs.items():
        if name not in own:
            continue
        exact, plain = (
            (a @ b + (bias if name == "y" else 0)).to(torch.float64)
            for a, b in ((left.double(), right.double()), (tf32(left.contiguous()), tf32(right.contiguous())))
        )
        rows = slice(None) if name == "grad_weight" else slice(70)
        require([verdict(name, own[name][rows], plain[rows].float(), exact[rows])])
        assert (own[name][rows] - exact[rows]).norm() > 2**-13 * exact[rows].norm()


def test_float32_is_the_default() -> None:
    given = instance("linear_attention", ["D=16", "E=16", "chunk=16"])
    text = cuda.source(given, "sm_90", ("forward",))
    assert "tf32" not in text and "mma" not in text
    assert "tilegen_mma_tf32" in cuda.source(given, resolve("sm_90", tf32=True), ("forward",))


def test_narrow_floats_and_double_are_multiplied_as_ever() -> None:
    for dtype in ("bfloat16", "float64"):
        given = instance("linear_attention", ["D=16", "E=16", "chunk=16"], dtype)
        texts = {cuda.source(given, resolve("sm_90", tf32=asked), ("forward",)) for asked in (False, True)}
        assert len(texts) == 1


def test_the_provenance_says_how_each_kernel_multiplies() -> None:
    given = instance("linear_attention", ["D=16", "E=16", "chunk=16"])
    made = scheduled_parts(given, ("forward",), resolve("sm_90", tf32=True))
    assert [kernel["products"] for kernel in made.provenance] == ["tf32"]
    assert all("products" not in kernel for kernel in scheduled_parts(given, ("forward",), resolve("sm_90")).provenance)
    assert resolve("sm_90", tf32=True).description["products"] == "tf32"
    assert "products" not in resolve("sm_90").description


@pytest.mark.parametrize(("name", "why"), [("cpu", "for a CPU"), ("sm_75", "for sm_75"), ("sm_75,sm_90", "for sm_75")])
def test_targets_without_tf32_say_so(name: str, why: str) -> None:
    with pytest.raises(TargetError, match=why):
        resolve(name, tf32=True)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nothing_spills(arch: str) -> None:
    target = resolve(arch, tf32=True)
    given = [packed_linear("float32", D=512, E=2176), instance("linear_attention", ["D=64", "E=64"])]
    for each in given:
        text, _ = cuda.kernels(scheduled_parts(each, ("forward",), target).parts, target)
        resources = nvcc.cubin(text, arch)[1]
        assert resources and not any(kernel.spill_stores for kernel in resources)
