"""The tolerance rule, the same everywhere.

The error against a float64 reference is at most twice the error of the same formula in PyTorch with inputs rounded to
the dtype, all arithmetic in float32 and one rounding at the end, plus one unit in the last place of the output's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tilegen.errors import TilegenError

Formula = Callable[..., Sequence[Tensor]]
Measure = Callable[[Tensor], float]


class ToleranceError(TilegenError):
    """A result is further from the reference than the tolerance rule allows; it is not timed."""


def peak(x: Tensor) -> float:
    """The largest element: every single one counts."""
    return x.abs().max().item()


def norm(x: Tensor) -> float:
    """The root of the mean square.  Of millions of errors the largest is one element's luck, this is not."""
    return x.square().mean().sqrt().item()


@dataclass(frozen=True)
class Verdict:
    """Error of one result, and what was allowed."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the allowed one; NaN is not."""
        return self.error <= self.allowed


def verdict(name: str, ours: Tensor, plain: Tensor, exact: Tensor, measure: Measure = peak) -> Verdict:
    """Judge `ours` by the float64 `exact`, allowing for the error of `plain` (float32 arithmetic, rounded to the dtype)."""
    dtype = ours.dtype
    unit = torch.finfo(dtype).eps * measure(exact)
    return Verdict(name, measure(ours.double() - exact), 2 * measure(plain.to(dtype).double() - exact) + unit)


def judge(
    op: Formula, formula: Formula, inputs: Sequence[Tensor], backward: bool = True, measure: Measure = peak
) -> list[Verdict]:
    """Judge every output of `op`, and the gradient of every input for random output gradients.

    Parameters
    ----------
    op, formula : take the inputs in order; `formula` computes in the dtype of its inputs.
    inputs : in the dtype of the test, rounded to it already.
    measure : how large a tensor of errors is, `peak` or `norm`.
    """
    io = inputs[0].dtype
    acc = torch.float64 if io == torch.float64 else torch.float32
    ours = _run(op, inputs, io, backward)
    with SumsInOwnDtype():
        plain = _run(formula, inputs, acc, backward)
    exact = _run(formula, inputs, torch.float64, backward)
    names = [f"output {i}" for i in range(len(ours[0]))] + [f"gradient {i}" for i in range(len(ours[1]))]
    rows = zip(names, [*ours[0], *ours[1]], [*plain[0], *plain[1]], [*exact[0], *exact[1]], strict=True)
    return [verdict(*row, measure) for row in rows]


def require(verdicts: Sequence[Verdict]) -> None:
    """Raise `ToleranceError` for the first result that is too far off."""
    for v in verdicts:
        if not v.passed:
            raise ToleranceError(
                f"{v.name} is {v.error:.3g} from the float64 reference, allowed are {v.allowed:.3g}; no timing is given for "
                "wrong numbers: please report it with the output of `tilegen doctor`"
            )


class SumsInOwnDtype(TorchFunctionMode):
    """Makes ``x.cumsum(dim)`` add in the dtype of x.

    On CPUs PyTorch adds float32 in float64, but the rule compares with a formula whose arithmetic is all in float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.cumsum, torch.cumsum) and args[0].device.type == "cpu":
            return _RunningSum.apply(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _RunningSum(torch.autograd.Function):
    """numpy's running sum, which stays in its dtype, and the reverse one for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return torch.from_numpy(np.cumsum(x.numpy(force=True), axis=dim))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = np.cumsum(grads[0].flip(ctx.dim).numpy(), axis=ctx.dim)
        return torch.from_numpy(total).flip(ctx.dim), None


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
