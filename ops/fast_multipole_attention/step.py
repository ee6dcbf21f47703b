"""One decoding step of causal fast multipole attention.

With t tokens so far, the state holds what the next one can still read: the fine blocks I-1 and I of block I = t // m, and at
every level the sums of the groups 2J-2, 2J-1 (read now) and 2J, 2J+1 (finished or running) of the pair J = t // 2w.  A new token
is written to its block, added to one running sum a level, and then attends as in the parallel form.  When a block, or a pair,
begins, the one before it moves to its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te

from tilegen.expression import (
    all_of,
    any_of,
    cast,
    compute,
    const,
    exp,
    floordiv,
    floormod,
    if_then_else,
    reduce_axis,
    reduce_max,
    reduce_sum,
    stop_gradient,
)
from tilegen.ops.fast_multipole_attention.expression import (
    MASKED,
    count_bias,
    inside,
    list_length,
    near_count,
    of_levels,
    offset,
    scale,
    stacked,
)
from tilegen.ops.fast_multipole_attention.pyramid import levels

Tensor = te.Tensor


def forward(config: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, position: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    """`q`, `k`, `v` [B, 1, H, D] and the state -> y [B, 1, H, D] and the state after."""
    near, far = {}, {}
    for name, rows in (("k", k), ("v", v)):
        token = compute((dims.B, dims.H, dims.D), lambda b, h, d, rows=rows: rows[b, 0, h, d], name=f"{name}_token")
        near[name] = with_token(config, dims, rest[f"near_{name}"], token, position, name)
        shares = [share(config, dims, rest, token, position, name, level) for level in levels(config)]
        far[name] = [with_share(config, dims, rest[f"far_{name}"], x, position, name, level) for level, x in enumerate(shares, 1)]
    keys, values = (visible_list(config, dims, near[name], far[name], position, name, rest) for name in "kv")
    y = attend(config, dims, q, keys, values, position)
    distant = [stacked(config, dims, far[name], f"far_{name}_out") for name in "kv"] if config.levels else []
    return (y, near["k"], near["v"], *distant, compute((dims.B,), lambda b: position[b] + 1, name="position_out"))


def with_token(config: Any, dims: Any, old: Tensor, token: Tensor, position: Tensor, name: str) -> Tensor:
    """The two fine blocks [B, H, 2m, D] with the new token in its place."""
    m, zero = config.block, const(0, dims.io)

    def body(b: Any, h: Any, s: Any, d: Any) -> Any:
        at = floormod(position[b], m)
        moved = if_then_else(s < m, old[b, h, s + m, d], zero)
        kept = if_then_else(at == 0, moved, old[b, h, s, d])
        return if_then_else(s == at + m, token[b, h, d], kept)

    return compute(old.shape, body, name=f"near_{name}_out")


def share(config: Any, dims: Any, given: Mapping[str, Tensor], token: Tensor, position: Tensor, name: str, level: int) -> Tensor:
    """What the new token adds to the sums of its group, [B, H, P, D]."""
    w, P = config.width(level), config.rank

    def body(b: Any, h: Any, r: Any, d: Any) -> Any:
        u, value = floormod(position[b], w), cast(token[b, h, d], dims.acc)
        if config.learned:
            return value * cast(given[f"w{name}{level}"][d, r, u], dims.acc)
        return if_then_else(floordiv(u, w // P) == r, value, const(0, dims.acc))

    return compute((dims.B, dims.H, P, dims.D), body, name=f"{name}_share{level}")


def with_share(config: Any, dims: Any, old: Tensor, added: Tensor, position: Tensor, name: str, level: int) -> Tensor:
    """The four groups [B, H, 4, P, D] of a level, the running one with the new token."""
    w, zero = config.width(level), const(0, dims.acc)

    def body(b: Any, h: Any, s: Any, r: Any, d: Any) -> Any:
        t = position[b]
        moved = if_then_else(s < 2, old[b, h, level - 1, s + 2, r, d], zero)
        kept = if_then_else(floormod(t, 2 * w) == 0, moved, old[b, h, level - 1, s, r, d])
        return kept + if_then_else(s == floormod(floordiv(t, w), 2) + 2, added[b, h, r, d], zero)

    return compute((dims.B, dims.H, 4, config.rank, dims.D), body, name=f"{name}_slots{level}")


def visible_list(
    config: Any, dims: Any, near: Tensor, far: list[Tensor], position: Tensor, name: str, given: Mapping[str, Tensor]
) -> Tensor:
    """The key (or value) list [B, H, N, D] of the new token: the list of the parallel form."""
    m, P, lead, zero = config.block, config.rank, (dims.B, dims.H), const(0, dims.acc)
    near_keys = compute(
        (*lead, 2, m, dims.D), lambda b, h, g, j, d: cast(near[b, h, g * m + j, d], dims.acc), name=f"{name}_near"
    )
    far_keys = []
    for level in levels(config):

        def body(b: Any, h: Any, s: Any, r: Any, d: Any, level: int = level) -> Any:
            total = far[level - 1][b, h, s, r, d]
            if not config.learned:
                return total * const(P / config.width(level), dims.acc)
            exists = position[b] >= 2 * config.width(level)
            return total + if_then_else(exists, cast(given[f"b{name}{level}"][d, r], dims.acc), zero)

        far_keys.append(compute((*lead, 2, P, dims.D), body, name=f"{name}_far{level}"))

    def entry(b: Any, h: Any, x: Any, d: Any) -> Any:
        value = near_keys(b, h, floordiv(x, m), floormod(x, m), d)
        if not config.levels:
            return value
        y = x - near_count(config)
        far = of_levels(config, y, lambda level, slot, r: far_keys[level - 1](b, h, slot, r, d))
        return if_then_else(y < 0, value, far)

    return compute((*lead, list_length(config), dims.D), entry, name=f"{name}_list")


def attend(config: Any, dims: Any, q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
    """One softmax over the list: q [B, 1, H, D] -> y [B, 1, H, D]."""
    N, rows, factor = list_length(config), (dims.B, dims.H, dims.T), const(scale(config, dims), dims.acc)
    d, x, y, z = (reduce_axis(n, name) for n, name in ((dims.D, "d"), (N, "x"), (N, "y"), (N, "z")))
    Q = compute((*rows, dims.D), lambda b, h, i, e: cast(q[b, i, h, e], dims.acc) * factor, name="q_scaled")
    score = compute((*rows, N), lambda b, h, i, x: reduce_sum(Q[b, h, i, d.var] * keys[b, h, x, d.var], d), name="score")
    logit = compute(
        (*rows, N),
        lambda b, h, i, x: if_then_else(
            seen(config, position[b], x), score[b, h, i, x] + count_bias(config, dims, 0, x), const(MASKED, dims.acc)
        ),
        name="logit",
    )
    top = stop_gradient(compute(rows, lambda b, h, i: reduce_max(logit[b, h, i, x.var], x), name="top"))
    p = compute((*rows, N), lambda b, h, i, x: exp(logit[b, h, i, x] - top[b, h, i]), name="p")
    den = compute(rows, lambda b, h, i: reduce_sum(p[b, h, i, y.var], y), name="den")
    num = compute((*rows, dims.D), lambda b, h, i, e: reduce_sum(p[b, h, i, z.var] * values[b, h, z.var, e], z), name="num")
    output = lambda b, i, h, e: cast(num[b, h, i, e] / den[b, h, i], dims.io)  # noqa: E731
    return compute((dims.B, dims.T, dims.H, dims.D), output, name="y")


def seen(config: Any, t: Any, x: Any) -> Any:
    """Whether token t attends to entry x of its list."""
    m = config.block
    cases = [all_of(x < m, any_of(t >= m, config.phantom_keys)), all_of(x >= m, x < 2 * m, x - m <= floormod(t, m))]
    for level in levels(config):
        w, y = config.width(level), x - offset(config, level)
        exists = any_of(t >= 2 * w, config.phantom_keys)
        cases.append(all_of(*inside(config, x, level), exists, any_of(y < config.rank, floormod(floordiv(t, w), 2) == 1)))
    return any_of(*cases)
