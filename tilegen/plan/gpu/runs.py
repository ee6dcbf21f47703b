"""Nests without a layout, several neighbouring elements a thread: what they read is in vectors, and many loads are under way at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import conjunction, const_int, find, substitute, variables
from tilegen.plan import stages
from tilegen.plan.evaluate import combine, identity
from tilegen.plan.gpu import masks, tf32, vector
from tilegen.plan.gpu.program import Node
from tilegen.plan.gpu.values import Values
from tilegen.schedules.rule import dtype_bytes

if TYPE_CHECKING:
    from tilegen.plan.gpu.nests import Nests

RUNS = (8, 4)
"""Elements of a thread, the more the better as long as every thread has some."""
AHEAD = 8
"""Terms of a sum whose loads are issued before the first of them is added."""


def reduced(block: Nests, node: Node) -> bool:
    """Write the nest of a reduction over tiles of memory, or of what is in shared memory, if runs of its results can be vectors."""
    over = [int(const_int(a.dom.extent)) for a in stages.reduce_axes(node.tensor)]
    steps = [tirx.Var(f"s{k}", "int32") for k in range(len(over))]
    for var, n in zip(steps, over, strict=True):
        block.analyzer.bind(var, ir.Range(0, n))
    run = _run(block, node, lambda values, *_: values.term_value(node.tensor, steps))
    if run is None or node.cut is not None:
        return False
    kind, dtype = stages.reduction(node.tensor), str(node.tensor.dtype)

    def nest(guarded: bool, most: int = AHEAD) -> None:
        ahead = next(n for n in range(min(most, over[-1]), 0, -1) if over[-1] % n == 0)
        turns = [*over[:-1], over[-1] // ahead]
        total = T.alloc_buffer([run], dtype, scope="local")
        with block._flat([*node.extents[:-1], node.extents[-1] // run]) as (*lead, last):
            lane = _lane(block, run)
            values = block._values_at([*lead, last * run + lane], inline=True)
            with T.unroll(0, run) as v:
                T.buffer_store(total, identity(kind, dtype), [v])
            with ExitStack() as stack:
                at = [stack.enter_context(T.serial(0, n)) for n in turns]
                for var, n in zip(at, turns, strict=True):
                    block.analyzer.bind(var, ir.Range(0, n))
                terms = [values.term_value(node.tensor, [*at[:-1], at[-1] * ahead + k]) for k in range(ahead)]
                for value in [_fetched(block, term, lane, run, guarded) for term in terms]:
                    with T.unroll(0, run) as v:
                        T.buffer_store(total, combine(kind, total[(v,)], substitute(value, {lane: v})), [v])
            for shared in block._writes(node):
                _stored(
                    shared.buffer,
                    lambda v, home=shared: tf32.kept(total[(v,)], home),
                    run,
                    [shared.flat([*lead, last * run])],
                    str(shared.dtype),
                )

    whole = _whole(block, node, run, steps, over)
    if not whole:
        nest(True)
        return True
    # All tiles but those at the ends of a sequence are there as a whole: then no thread asks about what it adds.
    with T.If(conjunction(whole)):
        with T.Then():
            nest(False)
        with T.Else():
            nest(True, AHEAD // 2)
    return True


def _whole(block: Nests, node: Node, run: int, steps: Sequence[Any], over: Sequence[int]) -> list[Any]:
    """Conditions of the block under which all guards of what a reduction reads hold; none where there are no such conditions."""
    lane = _lane(block, run)
    own = [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))]
    extents = [*node.extents[:-1], node.extents[-1] // run]
    for var, n in zip(own, extents, strict=True):
        block.analyzer.bind(var, ir.Range(0, n))
    expr = block._values_at([*own[:-1], own[-1] * run + lane], inline=True).term_value(node.tensor, list(steps))
    found: list[Any] = []
    for guard in [part for read in _reads(block, expr, lane, run) for whole in read.guards for part in masks.parts(whole)]:
        worst = guard
        for var, n in zip([*own, *steps], [*extents, *over], strict=True):
            worst = None if worst is None else masks.worst(worst, var, range(n))
        if worst is None:
            return []
        if not masks.known(worst, found):
            found.append(worst)
    return found


def written(block: Nests, node: Node, result: Callable[[Values], tuple[list[Any], list[Any], Callable[[], Any]]]) -> bool:
    """Write the nest of a result, if runs of it can be vectors; ``result(values)`` gives indices, guards and the value at a point."""
    target = block.targets[node.tensor]

    def probe(values: Values, lane: Any, run: int) -> Any:
        indices, guards, value = result(values)
        base = block.analyzer.simplify(indices[-1] - lane) if hasattr(indices[-1], "ty") else None
        along = base is None or any(_has(i, lane) for i in [*indices[:-1], base, *guards] if hasattr(i, "ty"))
        return None if along or (const_int(target.shape[-1]) or 1) % run else value()

    run = _run(block, node, probe)
    if run is None or node.cut is not None:
        return False
    lane = _lane(block, run)
    with block._flat([*node.extents[:-1], node.extents[-1] // run]) as (*lead, last):
        indices, guards, value = result(block._values_at([*lead, last * run + lane], inline=True))
        base = block.analyzer.simplify(indices[-1] - lane)
        with block._if(conjunction(guards)):
            found = _fetched(block, value(), lane, run)
            _stored(target, lambda v: substitute(found, {lane: v}), run, [*indices[:-1], base], str(target.dtype))
    return True


def _lane(block: Nests, run: int) -> Any:
    lane = tirx.Var("lane", "int32")
    block.analyzer.bind(lane, ir.Range(0, run))
    return lane


def _run(block: Nests, node: Node, value: Callable[[Values, Any, int], Any]) -> int | None:
    """How many neighbouring elements a thread computes; None where something that they read is not one vector."""
    if not node.extents:
        return None
    own = [tirx.Var(f"p{k}", "int32") for k in range(len(node.extents))]
    for run in RUNS:
        if node.extents[-1] % run or math.prod(node.extents) // run < block.threads:
            continue
        for k, (var, n) in enumerate(zip(own, node.extents, strict=True)):
            block.analyzer.bind(var, ir.Range(0, n // run if k == len(own) - 1 else n), allow_override=True)
        lane = _lane(block, run)
        expr = value(block._values_at([*own[:-1], own[-1] * run + lane], inline=True), lane, run)
        if expr is None:
            continue
        reads = _reads(block, expr, lane, run)
        loads = [load for load in find(expr, vector.is_load) if any(_has(i, lane) for i in load.indices)]
        whole = all(r.width * dtype_bytes(str(r.load.source.dtype)) in (8, vector.WIDEST) for r in reads)
        if reads and whole and len(loads) == len(reads):
            return run
    return None


def _reads(block: Nests, expr: Any, lane: Any, run: int) -> list[vector.VectorRead]:
    sources = [*block.memory.values(), *(home.buffer for home in block.homes.values())]
    return vector.vector_reads(expr, lane, run, block.analyzer, lambda source: any(source.same_as(b) for b in sources))


def _fetched(block: Nests, expr: Any, lane: Any, run: int, guarded: bool = True) -> Any:
    """`expr` with what it reads in registers, loaded here; without `guarded` the guards of its reads hold."""
    reads = _reads(block, expr, lane, run)
    for read in reads:
        read.slot = vector.allocate(read, run, "loaded")
        vector.fetch(read, lane, run, read.slot, 0, guarded=guarded)
    return vector.unguarded(vector.replaced(expr, reads, lane, 0), reads)


def _stored(target: Any, value: Callable[[Any], Any], run: int, at: Sequence[Any], dtype: str) -> None:
    """A run of values to memory, 16 bytes at a time."""
    temporary = T.alloc_buffer([run], dtype, scope="local")
    with T.unroll(0, run) as v:
        T.buffer_store(temporary, value(v).astype(dtype), [v])
    step = min(run, vector.WIDEST // dtype_bytes(dtype))
    for part in range(0, run, step):
        with T.vectorized(0, step) as v:
            T.buffer_store(target, temporary[(part + v,)], [*at[:-1], at[-1] + part + v])


def _has(expr: Any, var: Any) -> bool:
    return any(v.same_as(var) for v in variables(expr))
