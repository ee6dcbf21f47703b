"""Vector loads: the reads of global memory that are contiguous along a thread's run of elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.autodiff.ranges import conjuncts
from tilegen.expression.walkers import call_name, children, conjunction, const_int, find, prim, rewrite, substitute, variables
from tilegen.schedules.rule import dtype_bytes

WIDEST = 16
"""Bytes of one access."""


@dataclass
class VectorRead:
    """A read whose last index is `base` + lane, under the conditions `guards`.

    `several` when an expression has it more than once, under different conditions, any of which makes it safe: `guards` is that one of
    them holds, and each still says where the value is meant.
    """

    load: Any
    guards: list[Any]
    width: int
    slot: Any = None
    several: bool = False


def vector_reads(expr: Any, lane: Any, run: int, analyzer: Any, is_global: Any) -> list[VectorRead]:
    """The reads of `expr` that can be vectors of up to `run` elements along the variable `lane`."""
    found: list[VectorRead] = []
    single: list[Any] = []  # reads that some element of a run has and another has not

    def among(loads: list[Any], e: Any) -> int | None:
        return next((k for k, load in enumerate(loads) if tvm_ffi.structural_equal(load, e)), None)

    def add(e: Any, guards: list[Any]) -> None:
        width, known = _width(e, lane, run, analyzer), among([r.load for r in found], e)
        if width == 1:
            return
        if any(_has(g, lane) for g in guards):
            single.append(e)
            if known is not None and found[known].guards:
                del found[known]
        elif known is None:
            if not guards or among(single, e) is None:
                found.append(VectorRead(e, list(guards), width))
        elif not _same(found[known].guards, guards):
            read = found[known]
            read.guards = [tirx.Or(conjunction(read.guards), conjunction(guards))] if read.guards and guards else []
            read.several = True

    def visit(e: Any, guards: list[Any]) -> None:
        if is_load(e) and is_global(e.source):
            add(e, guards)
        if call_name(e) == "if_then_else":
            # The tile of an element is that of its whole run, once it is simplified.
            simple = lambda c: analyzer.simplify(c) if _has(c, lane) and not find(c, is_load) else c  # noqa: E731
            guard = conjunction([simple(c) for c in conjuncts(e.args[0])]) if _has(e.args[0], lane) else e.args[0]
            visit(e.args[0], guards)
            visit(e.args[1], [*guards, guard])
            visit(e.args[2], [*guards, tirx.Not(guard)])
            return
        for child in children(e):
            if hasattr(child, "ty"):
                visit(child, guards)

    visit(expr, [])
    return found


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(tvm_ffi.structural_equal(a, b) for a, b in zip(some, others, strict=True))


def _has(expr: Any, var: Any) -> bool:
    return any(v.same_as(var) for v in variables(expr))


def _width(load: Any, lane: Any, run: int, analyzer: Any) -> int:
    *lead, last = load.indices
    row = const_int(load.source.shape[-1])
    if row is None or any(hasattr(i, "ty") and _has(i, lane) for i in lead) or not hasattr(last, "ty"):
        return 1
    base = analyzer.simplify(last - lane)
    if _has(base, lane):
        return 1
    width = min(run, WIDEST // dtype_bytes(str(load.source.dtype)))
    while width > 1 and (row % width or run % width or not analyzer.can_prove(tirx.floormod(base, width) == 0)):
        width //= 2
    return width


def fetch(read: VectorRead, lane: Any, run: int, slot: Any, at: Any, extra: Any = None, guarded: bool = True) -> None:
    """Load all `run` elements of a read into registers `slot` from register `at` on; zeros where a guard (or `extra`) forbids.

    Without `guarded` its guards are known to hold.
    """
    buffer = read.load.source
    dtype = str(buffer.dtype)
    # `extra` says whether the element exists at all: the other guards may read memory for it.
    guard = conjunction([*([extra] if extra is not None else []), *(read.guards if guarded else [])])
    for part in range(0, run, read.width):
        with T.vectorized(0, read.width) as v:
            indices = [substitute(i, {lane: v + part}) if hasattr(i, "ty") else i for i in read.load.indices]
            value = buffer[tuple(indices)]
            if guard is not None:
                value = tirx.if_then_else(guard, value, tirx.const(0, dtype))
            T.buffer_store(slot, value, [at + part + v])


def allocate(read: VectorRead, count: int, label: str) -> Any:
    """Registers for `count` elements of a read."""
    slot = T.alloc_buffer([count], str(read.load.source.dtype), scope="local")
    IRBuilder.name(label, slot)
    return slot


def replaced(expr: Any, reads: list[VectorRead], lane: Any, at: Any) -> Any:
    """`expr` with every read that was fetched taken from its registers, `at` the first of this run."""
    for kind in {type(r.load) for r in reads}:

        def change(load: Any) -> Any:
            for read in reads:
                if tvm_ffi.structural_equal(read.load, load):
                    return read.slot[(at + lane,)]
            return load

        expr = rewrite(expr, kind, change)
    return expr


def unguarded(expr: Any, reads: list[VectorRead]) -> Any:
    """`expr` without guards around fetched reads alone: what was not fetched is 0 already."""
    slots = [read.slot for read in reads if not read.several]
    return _bare(expr, slots)


def _bare(expr: Any, slots: list[Any]) -> Any:
    if call_name(expr) == "if_then_else" and _is_zero(expr.args[2]):
        inner = _bare(expr.args[1], slots)
        return inner if _scaled(inner, slots) else expr
    return expr


def cuts(expr: Any, row: Any, rows: int) -> list[int]:
    """The values of `row`, in order, from which on `expr` reads other memory than before."""
    found: set[int] = set()

    def sources(e: Any) -> set[int]:
        return {hash(load.source) for load in find(e, is_load)}

    def visit(e: Any) -> None:
        if call_name(e) == "if_then_else":
            first, second = sources(e.args[1]), sources(e.args[2])
            at = _threshold(e.args[0], row)
            if first and second and first != second and at is not None and 0 < at < rows:
                found.add(at)
        for child in children(e):
            if hasattr(child, "ty"):
                visit(child)

    visit(expr)
    return sorted(found)


def _threshold(condition: Any, row: Any) -> int | None:
    """The least `row` for which ``row < c``, or a comparison like it, is decided otherwise than for those before."""
    if not isinstance(condition, (prim.LT, prim.LE, prim.GT, prim.GE)):
        return None
    for mine, other, late in ((condition.a, condition.b, (prim.LE, prim.GT)), (condition.b, condition.a, (prim.LT, prim.GE))):
        bound = const_int(other)
        if hasattr(mine, "same_as") and mine.same_as(row) and bound is not None:
            return bound + isinstance(condition, late)
    return None


def decided(expr: Any, analyzer: Any) -> Any:
    """`expr` without choices whose condition is known."""
    if call_name(expr) != "if_then_else":
        return expr
    condition, first, second = expr.args
    if analyzer.can_prove(condition):
        return decided(first, analyzer)
    if analyzer.can_prove(tirx.Not(condition)):
        return decided(second, analyzer)
    return tirx.if_then_else(condition, decided(first, analyzer), decided(second, analyzer))


def is_load(expr: Any) -> bool:
    """Whether an expression is a read of memory or registers."""
    return type(expr).__name__ in ("BufferLoad", "TensorLoad")


def _is_zero(expr: Any) -> bool:
    return getattr(expr, "value", None) == 0


def _scaled(expr: Any, slots: list[Any]) -> bool:
    """Whether `expr` is a fetched read, cast or times a constant."""
    if is_load(expr):
        return any(expr.source.same_as(slot) for slot in slots)
    if type(expr).__name__ == "Cast":
        return _scaled(expr.value, slots)
    return type(expr).__name__ == "Mul" and getattr(expr.b, "value", None) is not None and _scaled(expr.a, slots)
