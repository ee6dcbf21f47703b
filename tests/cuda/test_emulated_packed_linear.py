"""Packed linear maps as the CUDA code of a GPU, emulated: the tolerance rule, and blocks that have no row end at once."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda.emulator import emulated
from tilegen import mechanisms
from tilegen.bench.check import verdict
from tilegen.build import cuda
from tilegen.mechanisms import Instance
from tilegen.plan.plan import plan
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.registry import device_rule_for
from tilegen.schedules.rule import Fixed, Gpu

R, D, E = 150, 160, 136
ORDERS = ("forward", "reverse")


def instance(dtype: str, **static: int) -> Instance:
    mechanism = mechanisms.get("packed_linear")
    return Instance(mechanism, mechanism.config(bias=True), {"D": D, "E": E} | static, dtype)


@pytest.mark.parametrize("count", [0, 70, 150])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_in_use_and_their_gradients(dtype: str, count: int) -> None:
    generator, narrow = torch.Generator().manual_seed(0), getattr(torch, dtype)
    x, weight, bias, upstream = (torch.randn(shape, generator=generator).to(narrow) for shape in ((R, D), (E, D), (E,), (R, E)))
    x[count:] = upstream[count:] = torch.nan
    functions = emulated(instance(dtype), ("forward", "backward"))
    given = {"x": x, "weight": weight, "bias": bias, "count": torch.tensor([count], dtype=torch.int32)}
    made = functions.run("forward", given, ORDERS)
    made |= functions.run("backward", given | made | {"grad_y": upstream}, ORDERS)
    assert (made["y"][count:] == 0).all()
    assert (made["grad_x"][count:] == 0).all()
    if not count:
        assert all((made[f"grad_{name}"] == 0).all() for name in ("weight", "bias"))
        return
    results = []
    for wide in (torch.float32, torch.float64):
        leaves = [t.to(wide).requires_grad_() for t in (x[:count], weight, bias)]
        y = torch.nn.functional.linear(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, upstream[:count].to(wide))])
    own = [made["y"][:count], made["grad_x"][:count], made["grad_weight"], made["grad_bias"]]
    names = ("y", "grad_x", "grad_weight", "grad_bias")
    verdicts = [verdict(n, a, b, c) for n, a, b, c in zip(names, own, *results, strict=True)]
    assert not [found for found in verdicts if not found.passed]


def until_closed(text: str) -> tuple[str, str]:
    """`text`, which begins before a block, up to the end of the block, and from there."""
    depth = 0
    for brace in re.finditer(r'"(?:[^"]*)"|[{}]', text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[: brace.end()], text[brace.end() :]
    raise AssertionError("the block does not end")


@pytest.mark.parametrize(("function", "tiles"), [("forward", 1), ("backward", 2)])
def test_a_step_without_rows_does_nothing(function: str, tiles: int) -> None:
    """The count says how many steps there are: what they load, wait for and multiply is in their loop, or asks whether there are any."""
    kernels = [
        text for text in cuda.source(instance("bfloat16"), "sm_90", (function,)).split("__global__")[1:] if "mma.sync" in text
    ]
    assert len(kernels) == tiles
    for text in kernels:
        (steps,) = re.findall(r"\n  (count_\w+\[0\]) = .*\bcount_ptr\[0\]", text)
        before, _, rest = re.split(rf"(\n  for \(int (?:\w+) = 0; \w+ < {re.escape(steps)}; )", text)
        inside, after = until_closed(rest)
        assert all(word in inside for word in ("mma.sync", "__syncthreads", "tilegen_copy("))
        asked = re.sub(rf"\n  if \(\d+ < {re.escape(steps)}\) {{\n.*?\n  }}(?=\n)", "", before, flags=re.DOTALL)
        assert asked != before
        assert not any(word in asked + after.split("\n}\n")[0] for word in ("tilegen_copy(", "mma.sync", "__syncthreads"))


@pytest.mark.parametrize(("width", "out"), [(512, 2176), (4096, 1024)])
def test_shared_memory_does_not_grow_with_the_widths(width: int, out: int) -> None:
    made = plan(instance("bfloat16", D=width, E=out))
    for function in made.functions.values():
        for kernel in function.kernels:
            if isinstance(kernel, TileKernel):
                found = device_rule_for(kernel, "cuda").decide(kernel, Gpu(), Fixed())
                assert kernel.shared_bytes(Gpu(), found["warps"], found["parts"]) <= 48 * 1024
