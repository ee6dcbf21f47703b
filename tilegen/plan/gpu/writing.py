"""Tiles from registers to memory in runs of 16 bytes, where results are narrow.

Of a row of the tensor cores' blocks each of four lanes holds two neighbours, four bytes.  Of four blocks side by side they exchange what they
hold, so that each has a run of eight: half as many sectors of memory are written, and each as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import ir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import conjunction, const_int, substitute, variables
from tilegen.plan.gpu import vector
from tilegen.plan.gpu.func import WARP
from tilegen.plan.gpu.program import Node
from tilegen.schedules.rule import dtype_bytes

if TYPE_CHECKING:
    from tilegen.plan.gpu.tile import TileEmitter

LANES = 4
"""Lanes that hold a row of a block, and words that they exchange."""
RUN = 8
"""Elements of a run."""
PAIR = 2
"""Neighbours that a lane holds."""


def fits(block: TileEmitter, node: Node) -> bool:
    """Whether a result is made of whole runs of narrow elements, which whole groups of blocks hold."""
    layout, target = node.layout, block.targets[node.tensor]
    split, width = block.kernel.frames[node.tensor].axes[-1], const_int(target.shape[-1])
    if layout is None or not layout.tensor or layout.slant is not None or layout.turned or node.cut is not None:
        return False
    if not block.kernel.only_products() or layout.dims[1] % LANES or layout.extents != tuple(node.extents):
        return False
    whole = width is not None and width % RUN == 0 and (split is None or split[1] % RUN == 0)
    return whole and dtype_bytes(str(target.dtype)) * PAIR == LANES


def write(block: TileEmitter, node: Node) -> None:
    """Write the tile; what depends on the column alone is read before, once for all rows."""
    layout, target = node.layout, block.targets[node.tensor]
    assert layout is not None
    zero = tirx.const(0, "int32")
    a, b, c, _ = layout.dims
    columns = _column_reads(block, node)
    lane = tirx.truncmod(block.thread, LANES)
    with T.unroll(0, a) as m, T.unroll(0, c) as r:
        row = block._let("row", layout.place(block.thread, (m, zero, r, zero))[0], layout.rows)
        probe = tirx.Var("column", "int32")
        indices, guards, _ = block._result(node, block._values_at([row, probe], layout, (m, zero, r, zero)))
        mine = lambda g: any(v.same_as(probe) for v in variables(g))  # noqa: E731
        above, below = conjunction([g for g in guards if not mine(g)]), [g for g in guards if mine(g)]
        words = T.alloc_buffer([b * PAIR], str(target.dtype), scope="local")
        IRBuilder.name("words", words)
        with block._if(above), T.unroll(0, b) as n, T.unroll(0, PAIR) as e:
            at = (m, n, r, e)
            column = block._let("column", layout.place(block.thread, at)[1], layout.columns)
            values = block._values(node, [row, column], at)
            values.held = _with_columns(block, values.held, columns, n * PAIR + e)
            T.buffer_store(words, block._result(node, values)[2](), [n * PAIR + e])
        view = T.decl_buffer([b], "uint32", data=words.data, scope="local")
        for first in range(0, b, LANES):
            _exchange(view, first, lane)
        with block._if(above):
            for first in range(0, b, LANES):
                start = layout.first_column(block.thread) + first * 8 + lane * RUN
                with block._if(conjunction([substitute(g, {probe: start}) for g in below])), T.vectorized(0, RUN) as v:
                    T.buffer_store(target, words[(first * PAIR + v,)], [substitute(i, {probe: start + v}) for i in indices])


def _exchange(words: Any, first: int, lane: Any) -> None:
    """Four words of each of four lanes, so that lane i ends with the i-th of each, in the order of the lanes."""
    for mask in (1, 2):
        upper = tirx.bitwise_and(lane, mask) != 0
        for low in (k for k in range(first, first + LANES) if not (k - first) & mask):
            high = low + mask
            sent = tirx.Select(upper, words[(low,)], words[(high,)])
            got = T.Bind(T.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, "uint32"), sent, mask, WARP, WARP))
            IRBuilder.name("got", got)
            T.buffer_store(words, tirx.Select(upper, got, words[(low,)]), [low])
            T.buffer_store(words, tirx.Select(upper, words[(high,)], got), [high])


def _column_reads(block: TileEmitter, node: Node) -> list[tuple[Any, Any]]:
    """Registers with what the result reads of memory by its column alone: (the memory, the registers)."""
    layout = node.layout
    assert layout is not None
    zero, row, lane = tirx.const(0, "int32"), tirx.Var("row", "int32"), tirx.Var("lane", "int32")
    block.analyzer.bind(row, ir.Range(0, layout.rows))
    block.analyzer.bind(lane, ir.Range(0, PAIR))
    has = lambda e, var: hasattr(e, "ty") and any(v.same_as(var) for v in variables(e))  # noqa: E731

    def reads_at(n: Any) -> tuple[list[vector.VectorRead], Any]:
        at = (zero, n, zero, lane)
        values = block._values_at([row, layout.place(block.thread, at)[1]], layout, at, inline=True)
        _, guards, value = block._result(node, values)
        is_global = lambda source: any(source.same_as(buffer) for buffer in block.memory.values())  # noqa: E731
        found = vector.vector_reads(value(), lane, PAIR, block.analyzer, is_global)
        # A condition on the row decides whether a column is used, not whether it exists.
        kept = [f for f in found if all(has(g, row) for g in f.guards) and not any(has(i, row) for i in f.load.indices)]
        kept = [f for f in kept if sum(f.load.source.same_as(g.load.source) for g in found) == 1 and f.width == PAIR]
        return kept, conjunction([substitute(g, {lane: zero}) for g in guards if has(g, lane)])

    dummy = tirx.Var("n", "int32")
    block.analyzer.bind(dummy, ir.Range(0, layout.dims[1]))
    found = reads_at(dummy)[0]
    if not found:
        return []
    slots = [(f.load.source, vector.allocate(f, layout.dims[1] * PAIR, f"{f.load.source.name}_columns")) for f in found]
    with T.unroll(0, layout.dims[1]) as n:
        block.analyzer.bind(n, ir.Range(0, layout.dims[1]))
        reads, exists = reads_at(n)
        for read, (_, slot) in zip(reads, slots, strict=True):
            vector.fetch(read, lane, PAIR, slot, n * PAIR, exists, guarded=False)
    return slots


def _with_columns(block: TileEmitter, held: Any, columns: list[tuple[Any, Any]], at: Any) -> Any:
    """`held` that knows the registers of `columns` too."""

    def found(tensor: te.Tensor, indices: list[Any]) -> Any:
        memory = block.memory.get(tensor)
        slot = next((slot for source, slot in columns if memory is not None and source.same_as(memory)), None)
        return held(tensor, indices) if slot is None else slot[(at,)]

    return found
