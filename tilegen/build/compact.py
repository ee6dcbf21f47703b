"""Buffers of one tile, as memory of one tile.

The planner gives what a tile computes a buffer over all tiles, so that blocks stay independent for schedules; TVM's compaction finds
out that each block only touches one.  It asks its analyzer about every index of every read under all conditions around it, which takes
most of the time of code generation for long bodies.  Here the obvious part is done beforehand: an index that is the same everywhere,
and known where the buffer is allocated, is not an index.
"""

from __future__ import annotations

from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import ir, s_tir, sym, tirx  # noqa: E402

from tilegen.expression.walkers import const_int, variables  # noqa: E402


def compacted(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, of opaque blocks, with every buffer of one tile declared without the axes that say which."""
    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlock, _compact)))


def _compact(block: Any) -> Any:
    """A block with the buffers that it allocates, inner blocks first."""
    if not block.alloc_buffers:
        return block
    accesses: dict[Any, list[list[Any]]] = {buffer: [] for buffer in block.alloc_buffers if buffer.scope() == "global"}
    inner: set[Any] = set()
    other: set[Any] = set()

    def access(buffer: Any, node: Any) -> None:
        if buffer in accesses:
            accesses[buffer].append(list(node.indices))

    tvm_ffi.structural_walk(
        block.body,
        [
            (tirx.For, lambda loop: inner.add(loop.loop_var)),
            (tirx.Bind, lambda bind: inner.add(bind.var)),
            (tirx.BufferStore, lambda store: access(store.buffer, store)),
            (ir.TensorLoad, lambda load: access(load.source, load)),
            (s_tir.MatchBufferRegion, lambda match: other.add(match.source.source)),
        ],
    )
    fresh: dict[Any, tuple[Any, list[int]]] = {}
    for buffer, points in accesses.items():
        if buffer in other or not points:
            continue
        rest = [k for k in range(len(buffer.shape)) if not _same(points, k, inner)]
        shape = [buffer.shape[k] for k in rest] or [1]
        if len(rest) < len(buffer.shape) and all(const_int(n) is not None for n in shape):
            fresh[buffer] = tirx.decl_buffer(shape, str(buffer.dtype), name=buffer.name), rest
    if not fresh:
        return block

    def at(buffer: Any, indices: Any) -> tuple[Any, list[Any]]:
        made, rest = fresh[buffer]
        return made, [indices[k] for k in rest] or [tirx.const(0, "int32")]

    def store(node: Any) -> Any:
        if node.buffer not in fresh:
            return node
        made, indices = at(node.buffer, node.indices)
        return tirx.BufferStore(made, node.value, indices)

    def load(node: Any) -> Any:
        if node.source not in fresh:
            return node
        made, indices = at(node.source, node.indices)
        return tirx.BufferLoad(made, indices)

    def regions(node: Any) -> Any:
        keep = lambda found: [region for region in found if region.source not in fresh]  # noqa: E731
        return s_tir.SBlock(
            node.iter_vars, keep(node.reads), keep(node.writes), node.name_hint, node.body, node.init,
            node.alloc_buffers, node.match_buffers, node.annotations,
        )  # fmt: skip

    body = tvm_ffi.structural_map(block.body, [(tirx.BufferStore, store), (ir.TensorLoad, load), (s_tir.SBlock, regions)])
    allocations = [tirx.AllocBuffer(made) for made, _ in fresh.values()]
    left = [buffer for buffer in block.alloc_buffers if buffer not in fresh]
    whole = s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, tirx.SeqStmt([*allocations, body]), block.init,
        left, block.match_buffers, block.annotations,
    )  # fmt: skip
    return regions(whole)


def _same(points: list[list[Any]], axis: int, inner: set[Any]) -> bool:
    """Whether index `axis` is one value at all `points`, which is known outside."""
    if any(v in inner for v in variables(points[0][axis])):
        return False
    first, *others = [_without_zero(point[axis]) for point in points]
    return all(tvm_ffi.structural_equal(other, first) for other in others)


def _without_zero(index: Any) -> Any:
    """`index` as schedules left it, which split axes of one iteration into sums with 0."""
    return index if isinstance(index, ir.Var | tirx.IntImm) else sym.Analyzer().simplify(index)


@tirx.transform.prim_func_pass(opt_level=0)
def CompactTiles(func: tirx.PrimFunc, mod: tvm.IRModule, context: Any) -> tirx.PrimFunc:
    """See `compacted`."""
    return compacted(func)


PASSES = [
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    CompactTiles,
]
"""What TVM does before its own compaction, which does nothing when it comes to it again, and ours."""
