"""Comparing generated adjoints with torch's autograd, in float64, compiled unscheduled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tvm import te

from tests.autodiff.executor import TORCH, build, empty, prim_func, shape_of
from tilegen.autodiff import Gradients, gradient
from tilegen.expression import placeholder
from tilegen.expression.printer import graph_text

TOLERANCE = 1e-10


@dataclass
class Case:
    """A graph, the torch function that it states, and values for the inputs that may not be random."""

    inputs: Sequence[te.Tensor]
    outputs: Sequence[te.Tensor]
    reference: Callable[..., object]
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    limit: float = 4.0

    def arguments(self) -> list[torch.Tensor]:
        """The given values, and normal ones for everything else."""
        torch.manual_seed(0)
        drawn = {
            t.op.name: torch.randn(shape_of(t, self.sizes), dtype=TORCH[str(t.dtype)])
            for t in self.inputs
            if t.op.name not in self.values
        }
        return [(drawn | dict(self.values))[t.op.name] for t in self.inputs]


@dataclass
class Prepared:
    """A case with its adjoint, ready to be compiled together with others."""

    case: Case
    cotangents: list[te.Tensor]
    adjoint: Gradients
    differentiable: list[te.Tensor]

    @property
    def function(self) -> object:
        results = [*self.case.outputs, *self.adjoint]
        return prim_func([*self.case.inputs, *self.cotangents], results)

    @property
    def text(self) -> str:
        return graph_text([*self.case.outputs, *self.adjoint])


def prepare(case: Case) -> Prepared:
    """Differentiate a case with respect to all its floating inputs."""
    inputs = [t for t in case.inputs if "int" not in str(t.dtype)]
    cotangents = [placeholder(y.shape, str(y.dtype), f"grad_{y.op.name}_{k}") for k, y in enumerate(case.outputs)]
    return Prepared(case, cotangents, gradient(case.outputs, inputs, cotangents, limit=case.limit), inputs)


def error(prepared: Prepared, function: Callable[..., None]) -> float:
    """The largest deviation of outputs and gradients, relative to the largest value where that is above one."""
    case = prepared.case
    arguments = case.arguments()
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in arguments]
    expected = case.reference(*leaves)
    expected = expected if isinstance(expected, tuple) else (expected,)
    grads = [torch.randn(y.shape, dtype=y.dtype) for y in expected]
    floating = [x for x in leaves if x.is_floating_point()]
    wanted = torch.autograd.grad(expected, floating, grads, allow_unused=True)
    wanted = [torch.zeros_like(x) if g is None else g for g, x in zip(wanted, floating, strict=True)]
    results = [empty(t, case.sizes) for t in [*case.outputs, *prepared.adjoint]]
    function(*[x.detach().contiguous() for x in arguments], *grads, *results)
    worst = 0.0
    for got, want in zip(results, [*expected, *wanted], strict=True):
        deviation = (got - want.detach()).abs().max() / max(1.0, float(want.detach().abs().max()))
        worst = max(worst, float("inf") if torch.isnan(deviation) else float(deviation))
    return worst


def check(*cases: Case) -> list[Prepared]:
    """Compile all cases in one module and compare each with torch."""
    prepared = [prepare(case) for case in cases]
    module = build({f"case{k}": p.function for k, p in enumerate(prepared)})
    for k, p in enumerate(prepared):
        found = error(p, module[f"case{k}"])
        assert found < TOLERANCE, f"case {k} is off by {found:.1e}:\n{p.text}"
    return prepared
