"""Matrix products in blocks: every decision gives the same result, in the emulator; sums in parts are the whole sum, to the last step."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.emulator import EmulatedModule
from tests.cuda.emulator.module import aligned
from tests.cuda.test_emulated_packed_linear import instance
from tilegen.build import cuda
from tilegen.build.target import resolve
from tilegen.plan import blocks
from tilegen.plan.gpu.func import device_func
from tilegen.plan.gpu.math import math_of
from tilegen.plan.plan import plan
from tilegen.schedules.cuda.contraction import Contraction
from tilegen.schedules.registry import device_rule_for
from tilegen.schedules.rule import Fixed, Gpu

R, D, E, COUNT = 140, 208, 136, 133


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return aligned(shape, torch.bfloat16).copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("warps", "across", "stages", "width"), [(4, 1, 2, D), (4, 2, 3, D), (8, 2, 4, D), (8, 4, 3, 50)])
def test_every_decision_gives_the_same_product(warps: int, across: int, stages: int, width: int) -> None:
    """Rows of 50 elements are no runs of 16 bytes: they are loaded one by one."""
    function = plan(instance("bfloat16", D=width, E=E)).functions["forward"]
    (kernel,) = function.kernels
    assert isinstance(device_rule_for(kernel, "cuda"), Contraction)
    decisions = {"warps": warps, "across": across, "stages": stages, "prefetch": 2, "resident": 1, "parts": 1}
    made = device_func([(a.name, a.tensor) for a in function.args], [(kernel, decisions)], Gpu(), math_of("bfloat16"), "tilegen")
    text = cuda.generate({"tilegen": made}, resolve("sm_90"))
    assert (f"wait_group {stages - 2};" in text) is (width % 8 == 0)
    x, weight, bias = drawn(R, width, seed=0), drawn(E, width, seed=1), drawn(E, seed=2)
    y = aligned((R, E), torch.bfloat16)
    EmulatedModule(text)["tilegen"](x, weight, bias, torch.tensor([COUNT], dtype=torch.int32), y)
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())[:COUNT].to(torch.bfloat16)
    assert (y[:COUNT].float() - expected.float()).abs().max() <= 2**-8 * expected.float().abs().max()
    assert (y[COUNT:] == 0).all()


def test_a_sum_over_rows_is_shared_out_whatever_their_number() -> None:
    """As many tasks as keep a GPU busy, and no more parts than there is use for; products of known steps are not cut."""
    for width, out, parts in ((64, 64, blocks.MOST), (512, 2176, 7), (2048, 8192, 1)):
        functions = plan(instance("bfloat16", D=width, E=out)).functions
        shapes = [[int(n) for n in a.tensor.shape] for a in functions["backward"].args if a.name.endswith("dweight_parts")]
        assert shapes == ([[parts, out, width]] if parts > 1 else [])
        assert not any("parts" in a.name for a in functions["forward"].args)


def test_two_blocks_share_a_multiprocessor() -> None:
    for gpu in (Gpu(), Gpu(80, 108, 166912, 167936)):
        for function in plan(instance("bfloat16", D=512, E=2176)).functions.values():
            for kernel in (k for k in function.kernels if Contraction().fits(k)):
                made = Contraction().decide(kernel, gpu, Fixed())
                assert made["resident"] == 2
                assert 2 * (made["stages"] * kernel.shared_bytes(gpu, made["warps"], 1) + 1024) <= gpu.shared_total
