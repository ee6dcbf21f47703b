"""The summaries of fast multipole attention: sums over the parts of every group, level by level.

Groups of level l are pairs of groups of level l-1, so means need the tokens once: the levels of a *tile* of 8 groups are formed
from what the first of them sums up, and the tiles above from the highest level of these.  Learned summaries weigh the tokens
of each level anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tvm import te

from tilegen.expression import (
    cast,
    ceildiv,
    compute,
    const,
    floordiv,
    floormod,
    if_then_else,
    maximum,
    minimum,
    reduce_axis,
    reduce_sum,
)

Tensor = te.Tensor
TOGETHER = 3
"""Levels of sums beyond the first that are formed from one tile of what is below: 8 groups of that."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sums of one level over the tokens of every part of a group, [B, H, tiles, n, P, D]: n neighbouring groups make a tile.

    Levels of one tile are computed together from what the first of them reads.
    """

    stage: Tensor
    n: int

    def __call__(self, b: Any, h: Any, g: Any, r: Any, d: Any) -> Any:
        """Of part `r` of group `g`."""
        return self.stage[b, h, floordiv(g, self.n), floormod(g, self.n), r, d]


def pyramid(config: Any, dims: Any, X: Tensor, name: str, weights: Mapping[str, Tensor]) -> list[Sums]:
    """The sums of every level, without bias and not yet divided."""
    if config.learned:
        return [weighted(config, dims, X, weights[f"w{name}{level}"], level, name) for level in levels(config)]
    sums: list[Sums] = []
    for level in levels(config):
        sums.append(halves(config, dims, sums[-1], level, name) if sums else parts(config, dims, X, name))
    return sums


def levels(config: Any) -> range:
    """1..L"""
    return range(1, config.levels + 1)


def highest(config: Any, level: int) -> int:
    """The highest level of the tile that a level belongs to: 1 to 4, then three more each time."""
    return min(config.levels, max(1, ceildiv(level - 1, TOGETHER)) * TOGETHER + 1)


def summary_shape(config: Any, dims: Any, level: int) -> tuple[Any, ...]:
    """[B, H, tiles, n, P, D]"""
    top = level if config.learned else highest(config, level)
    return (dims.B, dims.H, ceildiv(dims.T, config.width(top)), 1 << (top - level), config.rank, dims.D)


def weighted(config: Any, dims: Any, X: Tensor, W: Tensor, level: int, name: str) -> Sums:
    """sum_u W[c, r, u] x[g w + u, c], with u = s m + j in block s of the group."""
    m, R, nb = config.block, 1 << (level - 1), X.shape[2]
    s, j = reduce_axis(R, "s"), reduce_axis(m, "j")

    def body(b: Any, h: Any, g: Any, _: Any, r: Any, c: Any) -> Any:
        term = W[c, r, s.var * m + j.var].astype(dims.acc) * X[b, h, g * R + s.var, j.var, c]
        return reduce_sum(if_then_else(g * R + s.var < nb, term, const(0, dims.acc)), [s, j])

    return Sums(compute(summary_shape(config, dims, level), body, name=f"{name}_sum{level}"), 1)


def parts(config: Any, dims: Any, X: Tensor, name: str) -> Sums:
    """Sums over the P equal parts of every fine block."""
    shape, nb, zero = summary_shape(config, dims, 1), X.shape[2], const(0, dims.acc)
    length = config.block // config.rank
    j = reduce_axis(length, "j")

    def body(b: Any, h: Any, t: Any, g: Any, r: Any, c: Any) -> Any:
        block = t * shape[3] + g
        return reduce_sum(if_then_else(block < nb, X[b, h, block, r * length + j.var, c], zero), j)

    return Sums(compute(shape, body, name=f"{name}_sum1"), shape[3])


def halves(config: Any, dims: Any, below: Sums, level: int, name: str) -> Sums:
    """The parts of a group, each made of two parts of the level below."""
    shape, P, zero = summary_shape(config, dims, level), config.rank, const(0, dims.acc)
    groups = ceildiv(dims.T, config.width(level - 1))
    t = reduce_axis(2, "t")
    same = highest(config, level - 1) == highest(config, level)  # then its groups below are in the same tile, if not all there

    def body(b: Any, h: Any, tile: Any, g: Any, r: Any, c: Any) -> Any:
        part = 2 * r + t.var
        group = 2 * g + floordiv(part, P)
        if same:
            return reduce_sum(below.stage[b, h, tile, group, floormod(part, P), c], t)
        group = group + tile * (2 * shape[3])
        return reduce_sum(if_then_else(group < groups, below(b, h, group, floormod(part, P), c), zero), t)

    return Sums(compute(shape, body, name=f"{name}_sum{level}"), shape[3])


def existing(config: Any, dims: Any, start: Any, width: int) -> Any:
    """How many of the `width` tokens from `start` on exist, at least 1."""
    return maximum(minimum(dims.T - start, width), 1)


def summary(config: Any, dims: Any, sums: Sums, level: int, bias: Tensor | None, name: str) -> Tensor:
    """What stands for part r of group g, a key in the dtype of keys: its sum with the bias, or its mean; [B, H, groups, P, D]."""
    width = config.width(level) // config.rank

    def value(b: Any, h: Any, g: Any, r: Any, d: Any) -> Any:
        total = sums(b, h, g, r, d)
        if bias is not None:
            return total + bias[d, r].astype(dims.acc)
        if config.causal:  # a group that is read lies in the past of some token, so it is complete
            return total * const(1 / width, dims.acc)
        return total / cast(existing(config, dims, g * config.width(level) + r * width, width), dims.acc)

    shape = (dims.B, dims.H, ceildiv(dims.T, config.width(level)), config.rank, dims.D)
    return compute(shape, lambda *i: cast(value(*i), dims.io), name=f"{name}_summary{level}")
