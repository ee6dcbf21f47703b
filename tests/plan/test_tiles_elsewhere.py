"""Tile kernels: a stage that is read at other outer points comes from memory, never from what the tile holds."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()

from tvm import te, tirx  # noqa: E402

from tilegen.expression import (  # noqa: E402
    cast,
    ceildiv,
    compute,
    const,
    floordiv,
    floormod,
    if_then_else,
    placeholder,
    reduce_axis,
    reduce_sum,
)
from tilegen.plan.frames import frame_of  # noqa: E402
from tilegen.plan.tiles import TileKernel, TilePartition  # noqa: E402

TILE = 4


def graph() -> tuple[te.Tensor, te.Tensor, te.Tensor, te.Tensor]:
    """x [B, T, 8], its tile sums s, y that reads s of the own tile and of the next, z that reads s of the own tile."""
    B, T = tirx.Var("B", "int32"), tirx.Var("T", "int32")
    tiles, zero = ceildiv(T, TILE), const(0, "float32")
    x = placeholder((B, T, 8), "float32", "x")
    d = reduce_axis(8, "d")
    inside = lambda b, n, i, e: if_then_else(n * TILE + i < T, x[b, n * TILE + i, e], zero)
    padded = compute((B, tiles, TILE, 8), inside, name="padded")
    s = compute((B, tiles, TILE), lambda b, n, i: reduce_sum(padded[b, n, i, d.var], d), name="s")
    after = lambda b, t: if_then_else(floordiv(t, TILE) + 1 < tiles, s[b, floordiv(t, TILE) + 1, floormod(t, TILE)], zero)
    y = compute((B, T), lambda b, t: s[b, floordiv(t, TILE), floormod(t, TILE)] + after(b, t), name="y")
    z = compute((B, T), lambda b, t: s[b, floordiv(t, TILE), floormod(t, TILE)] * 2, name="z")
    return x, s, y, z


def kernel_that_writes(partition: TilePartition, tensor: te.Tensor) -> TileKernel:
    (found,) = [kernel for kernel in partition.kernels if tensor in kernel.writes()]
    assert isinstance(found, TileKernel)
    return found


def test_a_stage_read_at_other_tiles_is_written_before() -> None:
    x, s, y, _ = graph()
    partition = TilePartition([y], [x])
    first, second = kernel_that_writes(partition, s), kernel_that_writes(partition, y)
    assert partition.kernels.index(first) < partition.kernels.index(second)
    assert s not in second.locals


def test_no_kernel_holds_a_stage_that_it_reads_elsewhere() -> None:
    x, s, y, z = graph()
    partition = TilePartition([z, y], [x])
    assert s not in kernel_that_writes(partition, y).locals
    assert s in kernel_that_writes(partition, z).locals


def test_a_result_that_also_reads_the_last_tile_is_computed_at_every_tile() -> None:
    """In tiles of one position the last one is a fixed place: y must not be computed there for all others."""
    B, T = tirx.Var("B", "int32"), tirx.Var("T", "int32")
    x, d = placeholder((B, T, 8), "float32", "x"), reduce_axis(8, "d")
    s = compute((B, T, 1), lambda b, t, i: reduce_sum(x[b, t + i, d.var], d), name="s")
    last = lambda b, t: if_then_else(t + 1 == T, s[b, T - 1, 0], const(0, "float32"))
    y = compute((B, T), lambda b, t: last(b, t) + s[b, t, 0], name="y")
    frame = frame_of(y, [x])
    assert frame is not None
    assert frame.axes == [(0, 1), (1, 1)]
    assert not frame.fixed


def test_what_other_tiles_read_in_fewer_bytes_is_written_in_those() -> None:
    B, T = tirx.Var("B", "int32"), tirx.Var("T", "int32")
    x, d = placeholder((B, T, 8), "bfloat16", "x"), reduce_axis(8, "d")
    s = compute((B, T, 2), lambda b, t, i: reduce_sum(cast(x[b, t, d.var], "float32"), d), name="s")
    narrow = compute((B, T, 2), lambda b, t, i: cast(s[b, t, i] * 0.5, "bfloat16"), name="narrow")
    before = lambda b, t: if_then_else(t > 0, cast(narrow[b, t - 1, 0], "float32"), const(0, "float32"))
    y = compute((B, T), lambda b, t: before(b, t) + s[b, t, 1], name="y")
    partition = TilePartition([y], [x])
    assert narrow in kernel_that_writes(partition, narrow).emits
    assert not any(s in kernel.writes() for kernel in partition.kernels)
