"""Walks whose steps are long become a short walk that leaves its states in memory, and tiles that no longer wait for each other.

A block walks the tiles of one sequence and head, one after another: a step takes as long as its chain of products, statistics of rows and
barriers, whatever else the card could do meanwhile.  Where that chain is long, writing the states before every tile costs less: the walk
is left with what it adds to its states, and every tile becomes a block of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import sym, te, tirx

from tilegen.expression import compute
from tilegen.expression.rebuild import replace
from tilegen.expression.walkers import const_int, is_load, load_tensor, prim, substitute, topological, variables
from tilegen.plan import stages
from tilegen.plan.frames import walk_axis
from tilegen.plan.plan import FunctionPlan, replanned
from tilegen.plan.tiles import TileKernel, longest

LONG = 5
"""Products and statistics of rows of a tile, each computed from the one before it, from which on a step of a walk is long."""

ROOM = 2
"""What states may take in memory at most, as a multiple of the bytes of arguments and results."""

LARGE = 1 << 12
"""A sequence that is no short one, to compare bytes."""

NARROW = {"float16", "bfloat16"}


def spread(function: FunctionPlan) -> FunctionPlan:
    """`function` with states in memory if one of its walks over tiles has long steps, and they take little of it."""
    walks = [kernel for kernel in function.kernels if isinstance(kernel, TileKernel) and kernel.walked is not None]
    if not any(longest(kernel.emits, function.ready) >= LONG for kernel in walks):
        return function
    results = [arg.tensor for arg in function.args if arg.tensor not in function.ready and arg.role != "workspace"]
    dtypes = {str(tensor.dtype) for tensor in results}
    changed, rounded = narrowed(results, function, dtypes.pop()) if len(dtypes) == 1 and dtypes < NARROW else (results, [])
    made = replanned(function, dict(zip(results, changed, strict=True)), rounded)
    states, others = (sum(_nbytes(arg.tensor) for arg in made.args if (arg.role == "workspace") is own) for own in (True, False))
    return made if states <= ROOM * others else function


def _nbytes(tensor: te.Tensor) -> int:
    """Bytes of a tensor whose symbolic sizes are large, so that tiles count as the part of a sequence that they are."""
    large = lambda dim: sym.Analyzer().simplify(substitute(dim, {size: tirx.const(LARGE, "int32") for size in variables(dim)}))  # noqa: E731
    return math.prod(const_int(large(dim)) or 1 for dim in tensor.shape) * stages.element_bytes(tensor)


def narrowed(results: list[te.Tensor], function: FunctionPlan, dtype: str) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """Results that read states as tensor cores round them, where nothing but products reads these; and the rounded states."""
    made: list[te.Tensor] = []
    while (state := _factor(results, function)) is not None:
        rounded = compute(list(state.shape), lambda *at, x=state: x(*at).astype(dtype), name=f"{state.op.name}_rounded")
        wide = compute(list(state.shape), lambda *at, x=rounded, t=str(state.dtype): x(*at).astype(t), name=state.op.name)
        results = replace(results, {state: wide})
        made.append(rounded)
    return results, made


def _factor(results: Sequence[te.Tensor], function: FunctionPlan) -> te.Tensor | None:
    """The first state of a walk that nothing but products reads."""
    order = [op.output(0) for op in topological(results)]
    readers: dict[te.Tensor, list[te.Tensor]] = {}
    for tensor in order:
        for source in {source for source, _ in stages.reads(tensor)}:
            readers.setdefault(source, []).append(tensor)
    states = (t for t in order if t in readers and t not in function.ready and walk_axis(t) is not None)
    return next((t for t in states if all(_multiplies(reader, t) for reader in readers[t])), None)


def _multiplies(tensor: te.Tensor, operand: te.Tensor) -> bool:
    """Whether a stage is a sum of products of elements of `operand` and of another."""
    if stages.kind(tensor) != "reduce" or stages.reduction(tensor) != "sum":
        return False
    body: Any = stages.body(tensor)
    return (
        isinstance(body, prim.Mul)
        and is_load(body.a)
        and is_load(body.b)
        and operand in {load_tensor(body.a), load_tensor(body.b)}
    )
