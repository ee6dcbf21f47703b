"""Compaction as tensor expressions.

Active row t of sequence b goes to the place that the number of active rows before it says, those of earlier sequences first::

    n_b(t) = number of active rows 0 .. t of sequence b
    cu_b = sum of n_a(T-1) over a < b
    packed[cu_b + n_b(t) - 1] = x[b, t]                       where (b, t) is active
    y[b, t] = packed[cu_b + n_b(t) - 1]                       where (b, t) is active, else 0

Both counts are scans.  No place is given twice, so the adjoint of either reads or writes every row at most once: the one is a
gather, the other a scatter without collisions.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import all_of, compute, const, floordiv, floormod, if_then_else, scan, scatter_add
from tilegen.expression.gather import UNIQUE

Tensor = te.Tensor


def compact(config: Any, dims: Any, x: Tensor, active: Tensor, room: Tensor) -> tuple[Tensor, ...]:
    """`x` [B T, C], `active` [B, T], `room` [R] -> packed [R, C], cu_seqlens [B+1] and, if wanted, positions [R]."""
    T, zero = dims.T, const(0, "int32")
    n = counts(dims, active)
    ends = compute((1, dims.B + 1), lambda _, b: if_then_else(b > 0, n[b - 1, T - 1], zero), name="ends")
    total = scan(ends, axis=1, name="total")
    cu = compute((dims.B + 1,), lambda b: total[0, b], name="cu")

    def place(row: Any) -> Any:
        b, t = floordiv(row, T), floormod(row, T)
        found = if_then_else(active[b, t], cu[b] + n[b, t] - 1, const(-1, "int32"))
        return if_then_else(b < dims.B, found, const(-1, "int32"))

    places = compute((dims.N, 1), lambda row, _: place(row), name="places")
    wide = compute(x.shape, lambda row, c: x[row, c].astype(dims.acc), name="wide") if dims.io != dims.acc else x
    placed = scatter_add(wide, places, axis=0, size=dims.R, unique=True, name="placed")
    packed = compute(placed.shape, lambda row, c: placed[row, c].astype(dims.io), name="packed") if wide is not x else placed
    if not config.return_positions:
        return packed, cu
    times = compute((dims.N,), lambda row: floormod(row, T), name="times")
    to = compute((dims.N,), place, name="to")
    return packed, cu, scatter_add(times, to, axis=0, size=dims.R, unique=True, name="positions")


def extract(config: Any, dims: Any, packed: Tensor, starts: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """`packed` [R, C], `starts` [B], `active` [B, T] -> y [B, T, C]."""
    n = counts(dims, active)

    def row(b: Any, t: Any, c: Any) -> Any:
        place = starts[b] + n[b, t] - 1
        inside = all_of(active[b, t], place >= 0, place < dims.R)
        return if_then_else(inside, packed[place, c], const(0, dims.io))

    return (compute((dims.B, dims.T, dims.C), row, name="y", attrs=UNIQUE),)


def counts(dims: Any, active: Tensor) -> Tensor:
    """How many rows of each sequence are active up to each one [B, T]."""
    one, zero = const(1, "int32"), const(0, "int32")
    ones = compute((dims.B, dims.T), lambda b, t: if_then_else(active[b, t], one, zero), name="ones")
    return scan(ones, axis=1, name="n")
