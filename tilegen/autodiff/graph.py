"""Reverse mode on a graph of tensor expressions: TE in, TE out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.check import require_proved, unproved_reads
from tilegen.autodiff.reads import Note
from tilegen.autodiff.scans import primitive_terms
from tilegen.autodiff.stage import stage_terms
from tilegen.autodiff.term import Term, accumulate, fresh
from tilegen.errors import AutodiffError
from tilegen.expression.stages import compute, is_stopped
from tilegen.expression.walkers import WIDE, same_shape, topological

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Gradients:
    """The adjoints of the inputs of a graph, one tensor each, and notes on how the reads were inverted."""

    tensors: list[te.Tensor]
    notes: list[Note] = field(repr=False)

    def __iter__(self) -> Iterator[te.Tensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, k: int) -> te.Tensor:
        return self.tensors[k]


def gradient(
    outputs: Sequence[te.Tensor],
    inputs: Sequence[te.Tensor],
    out_grads: Sequence[te.Tensor | None],
    *,
    limit: float = 4.0,
) -> Gradients:
    """The adjoints of `inputs` for the cotangents `out_grads` of `outputs`, as tensor expressions.

    The result refers to tensors of the forward graph; whoever compiles it decides which of them are saved and
    which are computed again.  An adjoint has the shape and dtype of its input; half precision is accumulated in
    float32 and rounded once.

    Parameters
    ----------
    outputs, inputs : tensors of one graph; inputs are floating, and usually placeholders.
    out_grads : one tensor of the output's shape and dtype for each output; None where it is not differentiated.
    limit : how many times the points of the forward stage an adjoint may enumerate.

    Raises
    ------
    AutodiffError
        What cannot be differentiated, with the stage, the index expression and what to write instead.
    """
    _check_arguments(outputs, inputs, out_grads)
    forward = topological(outputs)
    wanted = _on_path(forward, inputs)
    sources = set(inputs)
    terms: dict[te.Tensor, list[Term]] = {}
    for y, dy in zip(outputs, out_grads, strict=True):
        if dy is not None and y in wanted:
            terms.setdefault(y, []).append(_seed(y, dy))
    notes: list[Note] = []
    shared: dict[Any, te.Tensor] = {}
    adjoints: dict[te.Tensor, te.Tensor] = {}
    for op in reversed(forward):
        y = op.output(0)
        if op.num_outputs > 1 and any(op.output(k) in terms for k in range(op.num_outputs)):
            raise AutodiffError(
                f"stage '{op.name}': a reduction of several values at once has no adjoint; "
                "use one stage for each value, or mark it with stop_gradient"
            )
        if y not in terms:
            continue
        adjoints[y] = accumulate(y, terms.pop(y))
        if y in sources or isinstance(op, te.PlaceholderOp):
            continue
        if isinstance(op, te.ComputeOp):
            contributions = stage_terms(op, adjoints[y], wanted, notes, limit)
        else:
            contributions = primitive_terms(op, adjoints[y], wanted, shared)
        for x, term in contributions:
            terms.setdefault(x, []).append(term)
    result = Gradients([_rounded(adjoints[x], x) if x in adjoints else _zeros(x) for x in inputs], notes)
    _prove(result, outputs, forward)
    return result


def _check_arguments(outputs: Sequence[Any], inputs: Sequence[Any], out_grads: Sequence[Any]) -> None:
    if len(out_grads) != len(outputs):
        raise AutodiffError(f"out_grads has {len(out_grads)} tensors, must have one for each of {len(outputs)} outputs")
    for x in inputs:
        if str(x.dtype) not in FLOATS:
            raise AutodiffError(f"input '{x.op.name}' is {x.dtype} and has no gradient; leave it out of inputs")
    for y, dy in zip(outputs, out_grads, strict=True):
        if dy is None:
            continue
        if not same_shape(y.shape, dy.shape) or str(y.dtype) != str(dy.dtype):
            raise AutodiffError(
                f"the cotangent '{dy.op.name}' is {dy.dtype} {list(dy.shape)}, must be {y.dtype} {list(y.shape)} "
                f"as the output '{y.op.name}'"
            )


def _on_path(forward: Sequence[te.Operation], inputs: Sequence[te.Tensor]) -> set[te.Tensor]:
    """The floating tensors that depend on an input and are not marked as constants."""
    wanted = set(inputs)
    for op in forward:
        if is_stopped(op) or not any(x in wanted for x in op.input_tensors):
            continue
        results = [op.output(k) for k in range(op.num_outputs)]
        wanted.update(y for y in results if str(y.dtype) in FLOATS)
    return wanted


def _seed(y: te.Tensor, dy: te.Tensor) -> Term:
    i = fresh(y)
    dtype = WIDE.get(str(dy.dtype))
    return Term(i, dy(*i).astype(dtype) if dtype else dy(*i))


def _rounded(adjoint: te.Tensor, x: te.Tensor) -> te.Tensor:
    """The adjoint in the dtype of its tensor: one rounding, after all accumulation."""
    dtype = str(x.dtype)
    if str(adjoint.dtype) == dtype:
        return adjoint
    return compute(x.shape, lambda *i: adjoint(*i).astype(dtype), f"{adjoint.op.name}_{dtype}")


def _zeros(x: te.Tensor) -> te.Tensor:
    return compute(x.shape, lambda *i: tirx.const(0, str(x.dtype)), f"d{x.op.name}")


def _prove(result: Gradients, outputs: Sequence[te.Tensor], forward: Sequence[te.Operation]) -> None:
    unproved = unproved_reads(result.tensors, forward)
    if unproved:
        require_proved(outputs)  # most often the adjoint repeats a read of the forward
        listed = "; ".join(map(str, unproved))
        raise AutodiffError(f"internal error: reads of the adjoint are not provably in bounds: {listed}; please report it")
