"""Fast multipole attention as one tensor expression.

Kang, Tran, De Sterck, "Fast Multipole Attention: A Divide-and-Conquer Attention Mechanism for Long Sequences" (2023).  A query
of fine block I (m tokens) attends, under one softmax, to

* the tokens of the blocks I-1 and I (and I+1 when not causal), as they are;
* at level l = 1..L, with groups of w_l = m 2^(l-1) tokens of which B = I // 2^(l-1) is its own and J = B // 2 the pair of that:
  the groups of the pair J-1 (and J+1) that are not next to B; p summaries of each group.

Of every token before the query (of every token), exactly one of these stands for it.  A summary of group g at level l is ::

    k~[g, r, c] = sum_u W_l[c, r, u] k[g w_l + u, c] + b_l[c, r]      u < w_l;  v~ likewise, with weights of its own

or the mean of the r-th of p equal parts of the group.  Blocks make a query tile of m rows with two lists of keys: near keys, and
the summaries of every level.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te

from tilegen.expression import (
    all_of,
    any_of,
    cast,
    ceildiv,
    compute,
    const,
    exp,
    floordiv,
    floormod,
    if_then_else,
    log,
    maximum,
    reduce_axis,
    reduce_max,
    reduce_sum,
    stop_gradient,
)
from tilegen.ops.fast_multipole_attention.pyramid import Sums, existing, levels, pyramid, summary

Tensor = te.Tensor
MASKED = -1e30
"""The logit of a key that is not seen: finite, and its exponential is 0 beside any other."""
ROWS = ("b", "h", "I", "a")


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k`, `v` [B, T, H, D] -> y [B, T, H, D], then the state if the config returns one."""
    if config.step:
        from tilegen.ops.fast_multipole_attention import step

        return step.forward(config, dims, q, k, v, **rest)
    Q, K, V = (blocks(config, dims, x, factor) for x, factor in ((q, scale(config, dims)), (k, 1.0), (v, 1.0)))
    sums = {name: pyramid(config, dims, X, name, rest) for name, X in (("k", K), ("v", V))}
    keys, values = ([near_tiles(config, dims, X, name)] for name, X in (("k", K), ("v", V)))
    if config.levels:
        keys, values = (
            [*near, far_tiles(config, dims, K.shape[2], sums[name], name, rest)] for near, name in ((keys, "k"), (values, "v"))
        )
    y = attend(config, dims, Q, keys, values)
    return (y, *state(config, dims, k, v, sums)) if config.return_state else (y,)


def scale(config: Any, dims: Any) -> float:
    """The factor of the logits."""
    return dims.D**-0.5 if config.scale is None else config.scale


def blocks(config: Any, dims: Any, x: Tensor, factor: float) -> Tensor:
    """[B, T, H, D] as fine blocks [B, H, nb, m, D] times a factor, zero beyond T."""
    m, T, zero = config.block, dims.T, const(0, dims.acc)

    def body(b: Any, h: Any, I: Any, a: Any, d: Any) -> Any:  # noqa: E741 - the block of the paper
        value = cast(x[b, I * m + a, h, d], dims.acc)
        return if_then_else(I * m + a < T, value if factor == 1.0 else value * const(factor, dims.acc), zero)

    return compute((dims.B, dims.H, ceildiv(T, m), m, dims.D), body, name=f"{x.op.name}_blocks")


# ---------------------------------------------------------------- the key list of a query tile


def near_count(config: Any) -> int:
    """Near keys of a tile."""
    return (2 if config.causal else 3) * config.block


def far_count(config: Any) -> int:
    """Summaries of one level in a tile's list: of the pair before, and of the pair after."""
    return (2 if config.causal else 4) * config.rank


def list_length(config: Any) -> int:
    """Keys of a tile."""
    return near_count(config) + config.levels * far_count(config)


def offset(config: Any, level: int) -> int:
    """Where the summaries of a level begin in the list."""
    return near_count(config) + (level - 1) * far_count(config)


def group(I: Any, slot: Any, level: int) -> Any:  # noqa: E741
    """The group that `slot` of the list of block I stands for: 2J-2, 2J-1, then 2J+2, 2J+3."""
    return floordiv(I, 1 << level) * 2 - 2 + slot + floordiv(slot, 2) * 2


def near_tiles(config: Any, dims: Any, X: Tensor, name: str) -> Tensor:
    """The near keys (or values) of every tile, [B, H, nb, N, D]; zero where there is no such key."""
    m, nb, zero = config.block, X.shape[2], const(0, dims.acc)

    def body(b: Any, h: Any, I: Any, x: Any, d: Any) -> Any:  # noqa: E741
        block = I - 1 + floordiv(x, m)
        return if_then_else(all_of(block >= 0, block < nb), X[b, h, block, floormod(x, m), d], zero)

    return compute((dims.B, dims.H, nb, near_count(config), dims.D), body, name=f"{name}_near")


def far_tiles(config: Any, dims: Any, nb: Any, sums: list[Sums], name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """The summaries of all levels that every tile reads, [B, H, nb, F, D]; zero where there is no such group."""
    P, zero, lead = config.rank, const(0, dims.acc), (dims.B, dims.H, nb)
    far_keys = []
    for level in levels(config):
        value = summary(config, dims, sums[level - 1], level, weights.get(f"b{name}{level}"), name)

        def far(b: Any, h: Any, I: Any, s: Any, r: Any, d: Any, level: int = level, value: Any = value) -> Any:  # noqa: E741
            g = group(I, s, level)
            inside = [g >= 0] if config.causal else [g >= 0, g < ceildiv(dims.T, config.width(level))]
            return if_then_else(all_of(*inside), cast(value(b, h, g, r, d), dims.acc), zero)

        far_keys.append(compute((*lead, far_count(config) // P, P, dims.D), far, name=f"{name}_far{level}"))

    def body(*i: Any) -> Any:
        *at, y, d = i
        return of_levels(config, y, lambda level, slot, r: far_keys[level - 1](*at, slot, r, d))

    return compute((*lead, config.levels * far_count(config), dims.D), body, name=f"{name}_far")


def of_levels(config: Any, y: Any, value: Callable[[int, Any, Any], Any]) -> Any:
    """``value(level, slot, part)`` of entry `y` of a list of all summaries."""
    found = None
    for level in reversed(levels(config)):
        at = y - (level - 1) * far_count(config)
        mine = value(level, floordiv(at, config.rank), floormod(at, config.rank))
        found = mine if found is None else if_then_else(y < level * far_count(config), mine, found)
    return found


# ---------------------------------------------------------------- attention


def attend(config: Any, dims: Any, Q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """One softmax over the lists of every tile: [B, H, nb, m, D] queries -> y [B, T, H, D].

    `keys` and `values` are the near ones and, with levels, the summaries.
    """
    m, rows = config.block, tuple(Q.shape[:4])
    logits = [logit(config, dims, Q, K, name) for K, name in zip(keys, ("near", "far"), strict=False)]
    peaks = [row(reduce_max, L, f"{L.op.name}_top") for L in logits]
    largest = compute(rows, lambda *i: functools.reduce(maximum, [peak(*i) for peak in peaks]), name="top", axes=ROWS)
    top = stop_gradient(largest)
    weights = [
        compute(L.shape, lambda b, h, I, a, x, L=L: exp(L[b, h, I, a, x] - top[b, h, I, a]), name=L.op.name.replace("logit", "p"))
        for L in logits
    ]
    sums = [row(reduce_sum, p, p.op.name.replace("p", "den", 1)) for p in weights]
    den = compute(rows, lambda *i: functools.reduce(operator.add, [total(*i) for total in sums]), name="den", axes=ROWS)
    share = compute(rows, lambda b, h, I, a: const(1, dims.acc) / den[b, h, I, a], name="share")
    parts = [weighted_sum(p, share, V) for p, V in zip(weights, values, strict=True)]

    def output(b: Any, t: Any, h: Any, e: Any) -> Any:
        I, a = floordiv(t, m), floormod(t, m)  # noqa: E741
        return cast(functools.reduce(operator.add, [part[b, h, I, a, e] for part in parts]), dims.io)

    return compute((dims.B, dims.T, dims.H, dims.D), output, name="y")


def logit(config: Any, dims: Any, Q: Tensor, keys: Tensor, name: str) -> Tensor:
    """The logits of every row over the near keys or the summaries of its tile, `MASKED` where it sees none."""
    shape, first = (*Q.shape[:4], keys.shape[3]), 0 if name == "near" else near_count(config)
    d = reduce_axis(dims.D, "d")
    score = compute(
        shape, lambda b, h, I, a, x: reduce_sum(Q[b, h, I, a, d.var] * keys[b, h, I, x, d.var], d), name=f"score_{name}"
    )

    def body(b: Any, h: Any, I: Any, a: Any, x: Any) -> Any:  # noqa: E741
        visible = near_seen(config, dims, I, a, x) if name == "near" else summaries_seen(config, dims, I, x)
        value = score[b, h, I, a, x]
        return if_then_else(
            visible, value if name == "near" else value + count_bias(config, dims, I, x + first), const(MASKED, dims.acc)
        )

    return compute(shape, body, name=f"logit_{name}")


def row(reduction: Callable[..., Any], x: Tensor, name: str) -> Tensor:
    """The sum or maximum of every row of a tile."""
    k = reduce_axis(x.shape[4], "x")
    return compute(x.shape[:4], lambda b, h, I, a: reduction(x[b, h, I, a, k.var], k), name=name)


def weighted_sum(p: Tensor, share: Tensor, values: Tensor) -> Tensor:
    """What the keys of one list add to the result, divided by the sum over all of them.

    Divided before the product: the gradient of that sum then needs no product of its own.
    """
    w = compute(p.shape, lambda b, h, I, a, x: p[b, h, I, a, x] * share[b, h, I, a], name=p.op.name.replace("p", "w", 1))
    z = reduce_axis(p.shape[4], "z")
    shape = (*p.shape[:4], values.shape[4])
    body = lambda b, h, I, a, e: reduce_sum(w[b, h, I, a, z.var] * values[b, h, I, z.var, e], z)  # noqa: E731
    return compute(shape, body, name=p.op.name.replace("p", "num", 1))


def near_seen(config: Any, dims: Any, I: Any, a: Any, x: Any) -> Any:  # noqa: E741
    """Whether row `a` of block I attends to near key x."""
    m, T = config.block, dims.T
    at = (I - 1) * m + x
    if not config.causal:
        return all_of(at >= 0, at < T)
    return x - m <= a if config.phantom_keys else all_of(x - m <= a, at >= 0)


def summaries_seen(config: Any, dims: Any, I: Any, y: Any) -> Any:  # noqa: E741
    """Whether block I attends to entry y of its list of summaries."""
    x = y + near_count(config)
    return any_of(
        *[
            all_of(*inside(config, x, level), far_seen(config, dims, I, x - offset(config, level), level))
            for level in levels(config)
        ]
    )


def inside(config: Any, x: Any, level: int) -> tuple[Any, Any]:
    """Whether entry x of the list belongs to a level."""
    start = offset(config, level)
    return x >= start, x < start + far_count(config)


def far_seen(config: Any, dims: Any, I: Any, y: Any, level: int) -> Any:  # noqa: E741
    """Whether block I attends to summary y of a level."""
    P, w = config.rank, config.width(level)
    own = floordiv(I, 1 << (level - 1))
    if config.causal:
        exists = any_of(I >= 1 << level, config.phantom_keys)
        return all_of(exists, any_of(y < P, floormod(own, 2) == 1))
    g, r = group(I, floordiv(y, P), level), floormod(y, P)
    start = g * w if config.learned else g * w + r * (w // P)
    return all_of(g >= 0, start < dims.T, any_of(g <= own - 2, g >= own + 2))


def count_bias(config: Any, dims: Any, I: Any, x: Any) -> Any:  # noqa: E741
    """log(tokens of the group / P) for entry x of the list, 0 for near keys."""
    value = const(0, dims.acc)
    if not config.count_bias:
        return value
    for level in levels(config):
        w, start = config.width(level), offset(config, level)
        if config.causal:
            bias = const(math.log(w / config.rank), dims.acc)
        else:
            tokens = existing(config, dims, group(I, floordiv(x - start, config.rank), level) * w, w)
            bias = log(cast(tokens, dims.acc) * const(1 / config.rank, dims.acc))
        value = if_then_else(x >= start, bias, value)
    return value


# ---------------------------------------------------------------- the state after T tokens


def state(config: Any, dims: Any, k: Tensor, v: Tensor, sums: Mapping[str, list[Sums]]) -> tuple[Tensor, ...]:
    """What `step` goes on from: near_k, near_v [B, H, 2m, D], far_k, far_v [B, H, L, 4, P, D], position [B]."""
    m, T = config.block, dims.T
    last = floordiv(T - 1, m)  # the block of the last token

    def near(x: Tensor, name: str) -> Tensor:
        def body(b: Any, h: Any, s: Any, d: Any) -> Any:
            t = (last - 1) * m + s
            return if_then_else(all_of(t >= 0, t < T), x[b, t, h, d], const(0, dims.io))

        return compute((dims.B, dims.H, 2 * m, dims.D), body, name=name)

    def far(name: str) -> Tensor:
        slots = []
        for level in levels(config):

            def body(b: Any, h: Any, s: Any, r: Any, d: Any, level: int = level) -> Any:
                g = floordiv(T - 1, 2 * config.width(level)) * 2 - 2 + s
                exists = all_of(g >= 0, g < ceildiv(T, config.width(level)))
                return if_then_else(exists, sums[name][level - 1](b, h, g, r, d), const(0, dims.acc))

            slots.append(compute((dims.B, dims.H, 4, config.rank, dims.D), body, name=f"{name}_slots{level}"))
        return stacked(config, dims, slots, f"far_{name}_out")

    distant = [far(name) for name in "kv"] if config.levels else []
    return (
        near(k, "near_k_out"),
        near(v, "near_v_out"),
        *distant,
        compute((dims.B,), lambda b: cast(T, "int32"), name="position_out"),
    )


def stacked(config: Any, dims: Any, slots: list[Tensor], name: str) -> Tensor:
    """The slots [B, H, 4, P, D] of every level as [B, H, L, 4, P, D]."""

    def body(b: Any, h: Any, level: Any, s: Any, r: Any, d: Any) -> Any:
        value = slots[-1][b, h, s, r, d]
        for index in reversed(range(len(slots) - 1)):
            value = if_then_else(level == index, slots[index][b, h, s, r, d], value)
        return value

    return compute((dims.B, dims.H, config.levels, 4, config.rank, dims.D), body, name=name)
