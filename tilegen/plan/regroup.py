"""Sums that tiles share out among each other, gathered at the tile that they belong to.

The adjoint of keys that several query tiles read is a sum over those tiles.  As it is derived, every query tile computes its
part for all keys that it reads, and what belongs to one key tile is then summed over a few query tiles::

    X[c, j, d] = sum_i A[c, i, j] Q[c, i, d]                                  parts, float32, in memory
    y[c C + r, d] = sum over s < n of X[c + a + s, b0 + b s + r, d]           where tile c + a + s exists

A task can as well own the key tile and compute what the n query tiles say of it, their rows u = s I + i one after another::

    G[c, r, d] = sum over u < n I of A[c + a + u // I, u % I, b0 + b (u // I) + r] Q[c + a + u // I, u % I, d]

Stages that have an element for each pair (r, u) are computed again for these pairs; statistics of a row are read from memory,
where a kernel before has left them.  That trades operations for the bytes of X, written and read: `WORTH`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tvm import te

from tilegen.expression.rebuild import replace
from tilegen.expression.walkers import topological
from tilegen.plan import stages
from tilegen.plan.cost import nbytes
from tilegen.plan.gather import Gather
from tilegen.plan.shared_sums import Shared, shared_sum

WORTH = 32
"""Operations that are computed again rather than have one byte written and read between kernels.

GPUs do 100 and more in the time of a byte, CPUs some 5; there what is computed again is two of seven matrix products.
"""


def regrouped(outputs: Sequence[te.Tensor], ready: Collection[te.Tensor]) -> list[te.Tensor]:
    """`outputs`, with sums over tiles gathered where that is worth what is computed again; `ready` is in memory."""
    order = [op.output(0) for op in topological(outputs)]
    readers: dict[te.Tensor, set[te.Tensor]] = {}
    for tensor in order:
        for source, _ in stages.reads(tensor):
            readers.setdefault(source, set()).add(tensor)
    groups: dict[tuple[Any, ...], list[Shared]] = {}
    for tensor in order:
        found = shared_sum(tensor) if tensor not in ready and stages.kind(tensor) == "map" else None
        if found is not None and readers[found.parts[0].source] == {tensor} and found.parts[0].source not in outputs:
            groups.setdefault(found.signature(), []).append(found)
    mapping: dict[te.Tensor, te.Tensor] = {}
    for group in groups.values():
        gather = Gather(group[0], ready)
        made = [(shared.stage, gather.stage(shared)) for shared in group]
        new = {old: now for old, now in made if now is not None}
        moved = sum(2 * nbytes(shared.parts[0].source) for shared in group)
        if len(new) == len(group) and gather.flops() <= WORTH * moved:
            mapping |= new
    for tensor in [t for t in order if t in mapping]:
        others = {old: now for old, now in mapping.items() if old is not tensor}
        mapping[tensor] = replace([mapping[tensor]], others)[0]
    return replace(outputs, mapping)
