"""The tolerance rule, the same everywhere.

The error against a float64 reference is at most twice the error of the same formula in PyTorch with inputs rounded to
the dtype, all arithmetic in float32 and one rounding at the end, plus one unit in the last place of the output's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilegen.errors import TilegenError

Formula = Callable[..., Sequence[Tensor]]


class ToleranceError(TilegenError):
    """A result is further from the reference than the tolerance rule allows; it is not timed."""


@dataclass(frozen=True)
class Verdict:
    """Largest absolute error of one result, and what was allowed."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the allowed one; NaN is not."""
        return self.error <= self.allowed


def verdict(name: str, ours: Tensor, plain: Tensor, exact: Tensor) -> Verdict:
    """Judge `ours` by the float64 `exact`, allowing for the error of `plain` (float32 arithmetic, rounded to the dtype)."""
    dtype = ours.dtype
    unit = torch.finfo(dtype).eps * exact.abs().max().item()
    return Verdict(name, _error(ours, exact), 2 * _error(plain.to(dtype), exact) + unit)


def judge(op: Formula, formula: Formula, inputs: Sequence[Tensor], backward: bool = True) -> list[Verdict]:
    """Judge every output of `op`, and the gradient of every input for random output gradients.

    Parameters
    ----------
    op, formula : take the inputs in order; `formula` computes in the dtype of its inputs.
    inputs : in the dtype of the test, rounded to it already.
    """
    io = inputs[0].dtype
    acc = torch.float64 if io == torch.float64 else torch.float32
    ours, plain, exact = (_run(f, inputs, dtype, backward) for f, dtype in ((op, io), (formula, acc), (formula, torch.float64)))
    names = [f"output {i}" for i in range(len(ours[0]))] + [f"gradient {i}" for i in range(len(ours[1]))]
    rows = zip(names, [*ours[0], *ours[1]], [*plain[0], *plain[1]], [*exact[0], *exact[1]], strict=True)
    return [verdict(*row) for row in rows]


def require(verdicts: Sequence[Verdict]) -> None:
    """Raise `ToleranceError` for the first result that is too far off."""
    for v in verdicts:
        if not v.passed:
            raise ToleranceError(
                f"{v.name} is {v.error:.3g} from the float64 reference, allowed are {v.allowed:.3g}; no timing is given for "
                "wrong numbers: please report it with the output of `tilegen doctor`"
            )


def _run(function: Formula, inputs: Sequence[Tensor], dtype: torch.dtype, backward: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of `function` on the inputs cast to `dtype`."""
    leaves = [x.detach().to(dtype, copy=True).requires_grad_(backward) for x in inputs]
    outputs = list(function(*leaves))
    if not backward:
        return outputs, []
    # The same output gradients in every run: drawn from one seed and rounded to the dtype of the test.
    generator = torch.Generator(device=leaves[0].device).manual_seed(1)
    seeds = [torch.randn(y.shape, generator=generator, device=y.device).to(inputs[0].dtype).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, leaves, seeds)
    return [y.detach() for y in outputs], list(gradients)


def _error(x: Tensor, exact: Tensor) -> float:
    return (x.double() - exact).abs().max().item()
