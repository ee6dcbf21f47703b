"""Packed sequences as the CUDA code of a GPU, emulated: each sequence is as it is alone, by the tolerance rule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.emulator import emulated
from tilegen import mechanisms
from tilegen.bench.check import SumsInOwnDtype, verdict
from tilegen.mechanisms import Instance
from tilegen.torch import packing

BOUNDS = [0, 13, 13, 50, 69]
"""An empty sequence, and none that is a multiple of a tile."""


@dataclass(frozen=True)
class Case:
    op: str
    static: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return "-".join([self.op, self.dtype, *(f"{key}={value}" for key, value in self.options.items())])


HEADS = {"D": 16, "E": 16}
CASES = [
    Case("linear_attention", HEADS, {"chunk": 16}),
    Case("linear_attention", HEADS, {"chunk": 16, "initial_state": True, "return_state": True}, "float32"),
    Case("bounded_memory_attention", HEADS | {"N": 16}),
    Case("local_attention", HEADS, {"window": 20, "chunk": 16}),
    Case("local_attention", HEADS, {"window": 24, "chunk": 64}),
    Case("local_attention", HEADS, {"window": 20, "chunk": 16, "bias": True, "by_row": True}),
    Case("fast_multipole_attention", {"D": 16}, {"block": 16, "levels": 1}),
    Case("elementwise_attention", {"C": 16}, {"order": 2}),
]


def alone(case: Case, given: dict[str, Tensor], dtype: torch.dtype, seeds: dict[str, Tensor] | None) -> tuple[dict, dict]:
    """Outputs of the sequences one by one, and the gradients of all inputs if `seeds` are given."""
    mechanism = mechanisms.get(case.op)
    config = mechanism.config(**case.options)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
    specs = {spec.name: spec for spec in mechanism.inputs(config)}
    outputs = mechanism.outputs(config)
    parts: dict[str, list[Tensor]] = {spec.name: [] for spec in outputs}
    with SumsInOwnDtype():
        for s, (begin, end) in enumerate(itertools.pairwise(BOUNDS)):
            own = [x[:, begin:end] if "T" in specs[name].shape else x[s : s + 1] for name, x in leaves.items()]
            if begin == end:
                results = [
                    own[list(leaves).index(spec.name.removesuffix("_out"))] if "T" not in spec.shape else None for spec in outputs
                ]
            else:
                results = mechanism.reference(config, **dict(zip(leaves, own, strict=True)))
            for spec, result in zip(outputs, results, strict=True):
                parts[spec.name] += [] if result is None else [result]
        made = {spec.name: torch.cat(parts[spec.name], 1 if "T" in spec.shape else 0) for spec in outputs}
        if seeds is None:
            return made, {}
        grads = torch.autograd.grad(list(made.values()), list(leaves.values()), [seeds[name].to(dtype) for name in made])
    return made, dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_sequence_is_as_alone(case: Case) -> None:
    mechanism = mechanisms.get(case.op)
    functions = emulated(
        Instance(mechanism, mechanism.config(packed=True, **case.options), case.static, case.dtype), ("forward", "backward")
    )
    generator = torch.Generator().manual_seed(0)
    sizes = case.static | {"T": BOUNDS[-1], "S": len(BOUNDS) - 1, "H": 2}
    given, lengths = {}, set()
    for arg in functions.entries["forward"].args:
        if arg.role == "input" and arg.dtype == "int32":
            lengths.add(int(arg.name.rsplit("_", 1)[1]))
        elif arg.role == "input":
            x = torch.randn([sizes.get(dim, dim) for dim in arg.shape], generator=generator)
            given[arg.name] = (-x.abs() if arg.name == "decay" else x).to(getattr(torch, arg.dtype))
    rows = next(x for x in given.values() if x.shape[:2] == (1, BOUNDS[-1]))
    tables = packing.tables(sorted(lengths), torch.tensor(BOUNDS, dtype=torch.int32), case.op, rows)
    made = functions.run("forward", tables | given, ("forward", "reverse"))
    seeds = {
        spec.name: torch.randn_like(made[spec.name].float()).to(made[spec.name].dtype)
        for spec in mechanism.outputs(mechanism.config(**case.options))
    }
    back = functions.run(
        "backward", tables | given | made | {f"grad_{name}": seed for name, seed in seeds.items()}, ("forward", "reverse")
    )
    exact, exact_grads = alone(case, given, torch.float64, seeds)
    plain, plain_grads = alone(case, given, torch.float32, seeds)
    verdicts = [verdict(name, made[name], plain[name], exact[name]) for name in exact]
    verdicts += [verdict(f"grad_{name}", back[f"grad_{name}"], plain_grads[name], exact_grads[name]) for name in exact_grads]
    assert not [found for found in verdicts if not found.passed]
