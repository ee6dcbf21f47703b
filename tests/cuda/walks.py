"""Walks, maps and reductions as CUDA text, run on the CPU; and operators that have every kind of scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tilegen
from tests.cuda.emulator import emulate
from tests.cuda.emulator.module import aligned
from tilegen import mechanisms
from tilegen.bench.check import SumsInOwnDtype, norm, peak, verdict
from tilegen.build import cuda
from tilegen.build.target import resolve
from tilegen.bundle import shapes
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.func import device_func
from tilegen.plan.gpu.math import math_of
from tilegen.plan.plan import FunctionPlan, plan, shape_text
from tilegen.schedules.registry import device_rule_for
from tilegen.schedules.rule import Fixed, Gpu

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int32": torch.int32,
    "bool": torch.bool,
}  # fmt: skip


def decisions(function: FunctionPlan, **chosen: int) -> list[tuple[Any, dict[str, Any]]]:
    """Every kernel with its rule's defaults; `chosen` replaces decisions of walks that exchange states."""
    made = []
    for kernel in function.kernels:
        rule = device_rule_for(kernel, "cuda")
        sizes = rule.decide(kernel, Gpu(), Fixed())
        made.append((kernel, {**sizes, **chosen} if rule.name == "cuda.walk" else sizes))
    return made


def text(instance: Instance, function: FunctionPlan, **chosen: int) -> str:
    """The CUDA text of one function, called main."""
    return cuda.generate({"main": _device_func(instance, function, **chosen)}, resolve("sm_90"))


def kernels_text(instance: Instance, function: FunctionPlan) -> str:
    """The same with default sizes and without launchers, which nvcc compiles in a third of the time."""
    return cuda.kernels({"main": _device_func(instance, function)}, resolve("sm_90"))[0]


def _device_func(instance: Instance, function: FunctionPlan, **chosen: int) -> Any:
    params = [(arg.name, arg.tensor) for arg in function.args]
    return device_func(params, decisions(function, **chosen), Gpu(), math_of(instance.dtype))


def sizes_of(function: FunctionPlan, name: str, sizes: Mapping[str, int]) -> list[int]:
    """The shape of one argument."""
    tensor = next(arg.tensor for arg in function.args if arg.name == name)
    return [d if isinstance(d, int) else shapes.evaluate(d, sizes) for d in shape_text(tensor)]


def run(
    instance: Instance,
    function: FunctionPlan,
    values: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    order: str = "forward",
    **chosen: int,
) -> dict[str, Tensor]:
    """All arguments by name after running a function; what was not given was filled with NaN before."""
    arrays = {}
    for arg in function.args:
        shape, dtype = sizes_of(function, arg.name, sizes), DTYPES[str(arg.tensor.dtype)]
        arrays[arg.name] = aligned(shape, dtype)
        if arg.name in values:
            arrays[arg.name].copy_(values[arg.name].detach().reshape(shape))
    emulate(text(instance, function, **chosen))(*arrays.values(), order=order, names=list(arrays))
    return arrays


def of(operator: str, dtype: str, static: dict[str, int], **options: Any) -> Instance:
    """An instance of a published operator."""
    found = mechanisms.get(operator)
    return Instance(found, found.config(**options), static, dtype)


def gradients(instance: Instance, sizes: Mapping[str, int], **chosen: int) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, result, what it must be, what PyTorch makes of it in float32) of every output and gradient."""
    mechanism, functions = instance.mechanism, plan(instance).functions
    forward, backward = functions["forward"], functions["backward"]
    torch.manual_seed(0)
    given = {}
    for arg in forward.args:
        if arg.role == "input":
            shape = sizes_of(forward, arg.name, sizes)
            given[arg.name] = torch.randn(shape, dtype=torch.float64).to(DTYPES[str(arg.tensor.dtype)])

    def reference(dtype: torch.dtype) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        tensors = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
        return tensors, mechanism.reference(instance.config, **tensors)

    exact_in, exact = reference(torch.float64)
    with SumsInOwnDtype():
        single_in, single = reference(torch.float32)
    made = run(instance, forward, given, sizes, **chosen)
    outputs = [arg.name for arg in forward.args if arg.role == "output"]
    grads = [torch.randn_like(y).to(made[name].dtype) for name, y in zip(outputs, exact, strict=True)]
    with SumsInOwnDtype():
        for results in (exact, single):
            torch.autograd.backward(results, [g.to(y.dtype) for g, y in zip(grads, results, strict=True)])
    kept = {arg.name: made[arg.name] for arg in forward.args if arg.role in ("output", "saved")}
    given_back = {**given, **kept, **{f"grad_{name}": g for name, g in zip(outputs, grads, strict=True)}}
    back = run(instance, backward, given_back, sizes, **chosen)
    found = [(name, made[name], y.detach(), z.detach()) for name, y, z in zip(outputs, exact, single, strict=True)]
    for arg in backward.args:
        if arg.role == "grad_input":
            name = arg.name.removeprefix("grad_")
            found.append((arg.name, back[arg.name], exact_in[name].grad, single_in[name].grad))
    return found


def within(result: Tensor, exact: Tensor, single: Tensor) -> bool:
    """Whether a result keeps the tolerance rule.

    In float32 asked of the root mean square, as benchmarks ask it: the largest of a gradient's errors passes the bound by 8 % in
    one case here (docs/performance.md).
    """
    measure = norm if result.dtype == torch.float32 else peak
    return bool(torch.isfinite(result).all()) and verdict("result", result, single, exact, measure).passed


@dataclass(frozen=True)
class Direction:
    """Which way all scans run."""

    reverse: bool = False


RESULTS = ("sums", "decayed", "before", "soft", "least", "packed", "packed_most", "above", "last", "total")


@tilegen.mechanism(
    inputs={"x": "B T C", "d": "B T C", "s": "B C", "r": "int32: B T"},
    outputs={name: "B C" if name in ("last", "total") else "B T C" for name in RESULTS},
    config=Direction,
)
def every_scan(config, dims, x, d, s, r):
    """One scan of every kind; `above` reads two others, so that it is resolved after them."""
    from tilegen.expression import compute, reduce_axis, reduce_sum, scan

    B, T, C = x.shape
    kinds = {"axis": 1, "reverse": config.reverse}
    reset = compute((B, T, 1), lambda b, t, _: r[b, t], name="reset")
    sums = scan(x, name="sums", **kinds)
    decayed = scan(x, decay=d, initial=s, name="decayed", **kinds)
    before = scan(x, decay=d, exclusive=True, name="before", **kinds)
    soft = scan(x, kind="logsumexp", name="soft", **kinds)
    least = scan(x, kind="min", initial=s, name="least", **kinds)
    packed = scan(x, decay=d, reset=reset, initial=s, name="packed", **kinds)
    most = scan(x, kind="max", reset=reset, name="packed_most", **kinds)
    product = compute(x.shape, lambda b, t, c: least[b, t, c] * before[b, t, c], name="product")
    above = scan(product, decay=d, name="above", **kinds)
    end = 0 if config.reverse else T - 1
    last = compute((B, C), lambda b, c: decayed[b, end, c] + above[b, end, c], name="last")
    t = reduce_axis(T, "t")
    total = compute((B, C), lambda b, c: reduce_sum(soft[b, t.var, c] * x[b, t.var, c], t), name="total")
    return sums, decayed, before, soft, least, packed, most, above, last, total


def every_scan_reference(x: Tensor, d: Tensor, s: Tensor, r: Tensor, reverse: bool) -> dict[str, Tensor]:
    """The same, step by step."""
    steps = list(range(x.shape[1]))[:: -1 if reverse else 1]
    out = {name: torch.empty_like(x) for name in RESULTS[:8]}
    zero, most = torch.zeros_like(s), torch.full_like(s, -torch.inf)
    sums, decayed, before, above, packed, total = zero, s, zero, zero, s, zero
    soft, least = most, s
    for t in steps:
        start = (r[:, t] > 0)[:, None]
        out["before"][:, t] = before
        sums, decayed, soft = sums + x[:, t], decayed * d[:, t] + x[:, t], torch.logaddexp(soft, x[:, t])
        least = torch.minimum(least, x[:, t])
        packed = torch.where(start, zero, packed) * d[:, t] + x[:, t]
        most = torch.maximum(torch.where(start, -torch.inf, most), x[:, t])
        above = above * d[:, t] + least * before
        before = before * d[:, t] + x[:, t]
        total = total + soft * x[:, t]
        now = {
            "sums": sums,
            "decayed": decayed,
            "soft": soft,
            "least": least,
            "packed": packed,
            "packed_most": most,
            "above": above,
        }
        for name, value in now.items():
            out[name][:, t] = value
    return {**out, "last": decayed + above, "total": total}
