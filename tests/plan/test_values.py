"""Plans compute the right numbers, whatever the stages are called."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tvm import ir, te

from tests.plan.graphs import both, chunked, elementwise, run
from tilegen.build import pipeline
from tilegen.build.scheduled import schedule
from tilegen.build.target import resolve
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.walkers import is_load, load_indices, load_tensor, prim, rewrite, topological
from tilegen.plan.plan import PlanArg, _function


def attention(q, k, v):
    scores = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    return torch.einsum("bhij,bjhe->bihe", scores, v)


@pytest.mark.parametrize("T", [1, 4, 5, 13])
def test_tiles_of_any_length_forward_and_backward(T):
    instance, rng = chunked(), np.random.default_rng(T)
    functions, sizes = both(instance), {"B": 2, "T": T}
    values = {n: rng.standard_normal((2, T, 2, d)) for n, d in (("q", 3), ("k", 3), ("v", 5))}
    values["grad_y"] = rng.standard_normal((2, T, 2, 5))
    got = run(instance, functions["forward"], values, sizes)
    tensors = {n: torch.tensor(values[n], requires_grad=True) for n in "qkv"}
    y = attention(**tensors)
    np.testing.assert_allclose(got["y"], y.detach(), rtol=0, atol=1e-12)
    want = torch.autograd.grad(y, list(tensors.values()), torch.tensor(values["grad_y"]))
    back = run(instance, functions["backward"], got | values, sizes)
    for name, grad in zip("qkv", want, strict=True):
        np.testing.assert_allclose(back[f"grad_{name}"], grad, rtol=0, atol=1e-12)


def machine_code(instance, function):
    """What LLVM made of a function, without its names."""
    target = resolve()
    lib = pipeline.compile(schedule(instance, function, target).mod, target.tvm)
    return lib.mod.inspect_source("asm")


def renamed(outputs, swap):
    """The same graph with other stage names and, if `swap`, the operands of every float addition and product exchanged."""
    made: dict[te.Tensor, te.Tensor] = {}
    for number, op in enumerate(topological(outputs)):
        tensor = op.output(0)
        if isinstance(op, te.PlaceholderOp):
            continue
        if scan_spec(op) is not None:
            from tilegen.expression import scan

            spec, sources = scan_spec(op), {role: made.get(s, s) for role, s in scan_inputs(op).items()}
            made[tensor] = scan(
                sources.pop("x"), axis=spec.axis, kind=spec.kind, reverse=spec.reverse, exclusive=spec.exclusive, name=f"n{number}", **sources
            )
            continue

        def load(call):
            return made.get(load_tensor(call), load_tensor(call))(*load_indices(call)) if is_load(call) else call

        def exchange(expr):
            return type(expr)(expr.b, expr.a) if swap and str(expr.ty.dtype).startswith("float") else expr

        bodies = [rewrite(body, ir.Call, load) for body in op.body]
        if swap:
            bodies = [rewrite(rewrite(body, prim.Mul, exchange), prim.Add, exchange) for body in bodies]
        made[tensor] = te._ffi_api.ComputeOp(f"n{number}", "", op.attrs, op.axis, bodies).output(0)
    return [made[t] for t in outputs]


@pytest.mark.parametrize("instance", [elementwise("float32", 32), chunked("float32", 16, D=16, E=16)], ids=["walk", "tile"])
def test_names_of_stages_change_nothing(instance):
    forward = both(instance)["forward"]
    given = [arg for arg in forward.args if arg.role == "input"]
    results = [arg for arg in forward.args if arg.role not in ("input", "workspace")]
    other = renamed([arg.tensor for arg in results], swap=False)
    twin = _function("forward", given, [PlanArg(a.name, a.role, t) for a, t in zip(results, other, strict=True)])
    assert machine_code(instance, twin) == machine_code(instance, forward)


@pytest.mark.parametrize("instance", [elementwise("float32", 32), chunked("float32", 16, D=16, E=16)], ids=["walk", "tile"])
def test_the_order_of_operands_changes_no_rule(instance):
    forward = both(instance)["forward"]
    given = [arg for arg in forward.args if arg.role == "input"]
    results = [arg for arg in forward.args if arg.role not in ("input", "workspace")]
    other = renamed([arg.tensor for arg in results], swap=True)
    twin = _function("forward", given, [PlanArg(a.name, a.role, t) for a, t in zip(results, other, strict=True)])

    def choices(function):
        """Rules and decisions by kernel; blocks are numbered in program order, which may differ."""
        for part in schedule(instance, function, resolve()).provenance:
            yield part["kernel"], part["rule"], sorted((re.sub(r"\d+", "", name), value) for name, value in part["decisions"].items())

    assert list(choices(twin)) == list(choices(forward))
