"""Large contractions in blocks, each walked along the contracted axis.

A matrix product of two operands in memory with a symbolic extent is said again with its axes cut into blocks::

    y[a, b] = sum_r L[a, r] R[b, r]

    P[A, B, K, i, j] = sum_k L[A n + i, K m + k] R[B n + j, K m + k]
    S = sum of P over 0 .. K, a scan                     y[a, b] = S[a // n, b // n, last, a % n, b % n]

So a task owns a block of y and walks K with S in registers: what any tile kernel that carries a state does.

Where K is symbolic and the rest is not, as in the gradient of a weight, few tasks would walk far.  Then several tasks own each block of y and
take steps in turn, ``K = parts n + p`` for task p, however many steps there are; what they have is added up afterwards, in their order:

    P[A, B, p, n, i, j] = sum_k L[A n + i, (parts n + p) m + k] R[..]        y = sum of the last S over p

A sum of columns over a symbolic axis is said in two steps, ``y[b] = sum_K sum_k R[b, K m + k]``: both are short, which in float32
is nearly as good as adding in pairs, and the first has a task for every K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, te, tirx

from tilegen.autodiff.ranges import analyzer, conjuncts, prune
from tilegen.expression import ceildiv, compute, const, if_then_else, reduce_axis, reduce_sum, scan
from tilegen.expression.rebuild import replace
from tilegen.expression.walkers import (
    call_name,
    conjunction,
    const_int,
    factors,
    find,
    is_const,
    is_load,
    load_indices,
    load_tensor,
    loads,
    rewrite,
    substitute,
    topological,
    variables,
)
from tilegen.plan import stages
from tilegen.plan.frames import EVERYWHERE

SIDE = 128
"""Rows and columns of a block at most: with 64 float32 sums a thread, 256 threads read 64 operations' operands for every element."""

STEP = 64
"""Elements of the contracted axis in one step of the walk at most."""

TASKS = 512
"""Tasks that keep a GPU busy."""

MOST = 16
"""Parts of a sum at most."""

LEAST = 16
"""Rows and columns below which a contraction is a reduction like any other."""


@dataclass(frozen=True)
class Side:
    """An operand as a function of one axis of the result and the contracted one, and the conditions under which it is not 0."""

    value: Any
    conditions: list[Any]


@dataclass(frozen=True)
class Product:
    """``y[a, b] = sum_r left(a, r) right(b, r)``; `a`, `b` and `r` are (variable, extent)."""

    a: tuple[Any, Any]
    b: tuple[Any, Any]
    r: tuple[Any, Any]
    left: Side
    right: Side


def blocked(outputs: Sequence[te.Tensor]) -> list[te.Tensor]:
    """`outputs` with every large contraction in blocks, and beside those sums of columns in two steps."""
    tensors = [op.output(0) for op in topological(outputs)]
    products = {y: product for y in tensors if (product := product_of(y)) is not None and _large(product)}
    if not products:
        return list(outputs)  # its kernels are walks, or tiles of its own
    made = {y: in_blocks(y, product) for y, product in products.items()}
    return replace(outputs, made | {y: in_two_steps(y) for y in tensors if _is_column_sum(y)})


def product_of(y: te.Tensor) -> Product | None:
    """The two operands of a contraction of tensors in memory, None for anything else."""
    if stages.kind(y) != "reduce" or stages.reduction(y) != "sum" or len(y.shape) != 2 or len(stages.reduce_axes(y)) != 1:
        return None
    a, b = stages.axes(y)
    (over,) = stages.reduce_axes(y)
    value, conditions = _guarded(_inlined(stages.body(y)))
    parts = factors(value)
    if len(parts) != 2 or any(stages.is_anchor(load_tensor(load)) for load in loads(value)):
        return None
    sides: dict[int, Side] = {}
    for part in parts:
        own, mine = _guarded(part)
        for k, axis in enumerate((a, b)):
            if _uses(own, axis) and not _uses(own, (b, a)[k]) and _uses(own, over.var):
                shared = [c for c in conditions if not _uses(c, (b, a)[k])]
                sides[k] = Side(own, [*mine, *shared])
                conditions = [c for c in conditions if all(c is not known for known in shared)]
    if len(sides) != 2 or conditions:
        return None
    return Product((a, y.shape[0]), (b, y.shape[1]), (over.var, over.dom.extent), sides[0], sides[1])


def _large(product: Product) -> bool:
    """Whether a tile of the result would be one row of it, or the whole."""
    extents = [const_int(extent) for _, extent in (product.a, product.b, product.r)]
    return any(n is None for n in extents) and all(n is None or n >= LEAST for n in extents)


def _is_column_sum(y: te.Tensor) -> bool:
    """Whether a stage is the sum over one symbolic axis of what is in memory, for every element of a static one."""
    if stages.kind(y) != "reduce" or stages.reduction(y) != "sum" or len(y.shape) != 1 or len(stages.reduce_axes(y)) != 1:
        return False
    known = const_int(y.shape[0]), const_int(stages.reduce_axes(y)[0].dom.extent)
    in_memory = not any(stages.is_anchor(load_tensor(load)) for load in loads(_inlined(stages.body(y))))
    return known[0] is not None and known[0] >= LEAST and known[1] is None and in_memory


def in_two_steps(y: te.Tensor) -> te.Tensor:
    """`y` as a sum over the sums of blocks."""
    (axis,), (over,) = stages.axes(y), stages.reduce_axes(y)
    count, dtype = ceildiv(over.dom.extent, STEP), str(y.dtype)
    value, conditions = _guarded(_inlined(stages.body(y)))

    def part(block: Any, b: Any, k: Any) -> Any:
        mapping = {axis: b, over.var: block * STEP + k}
        known = conjunction([mapping[over.var] < over.dom.extent, *[substitute(c, mapping) for c in conditions]])
        return if_then_else(known, substitute(value, mapping), const(0, dtype))

    k, block = reduce_axis(STEP, "k"), reduce_axis(count, "block")
    parts = compute([count, y.shape[0]], lambda n, b: reduce_sum(part(n, b, k.var), k), f"{y.op.name}_part")
    return compute(list(y.shape), lambda b: reduce_sum(parts(block.var, b), block), y.op.name)


def in_blocks(y: te.Tensor, product: Product) -> te.Tensor:
    """`y` as the last step of a scan over blocks of its contracted axis."""
    axes = {"a": product.a, "b": product.b, "r": product.r}
    sizes = {name: _block(extent, STEP if name == "r" else SIDE) for name, (_, extent) in axes.items()}
    # Axes of tiles are those up to the last symbolic one, so that one comes last.
    order = sorted(axes, key=lambda name: const_int(axes[name][1]) is None)
    counts = {name: ceildiv(axes[name][1], sizes[name]) for name in order}
    parts = _parts(counts)
    if parts > 1:
        order, counts = ["a", "b", "part", "r"], counts | {"part": parts, "r": ceildiv(axes["r"][1], sizes["r"] * parts)}
    outer, dtype, name = [counts[key] for key in order], str(y.dtype), y.op.name
    place = {key: order.index(key) for key in order}

    def tile(side: Side, own: str, label: str) -> tuple[te.Tensor, tuple[str, str]]:
        """A block of an operand, its last axis the one that is contiguous in memory."""
        last = _contiguous(side.value, axes[own][0], axes["r"][0])
        inner = (own, "r") if last is axes["r"][0] else ("r", own)

        def body(*at: Any) -> Any:
            block = {key: at[place[key]] for key in inner}
            if parts > 1:
                block["r"] = block["r"] * parts + at[place["part"]]
            here = {key: block[key] * sizes[key] + at[len(outer) + k] for k, key in enumerate(inner)}
            mapping = {axes[key][0]: index for key, index in here.items()}
            ana = analyzer(zip(at, [*outer, *[sizes[key] for key in inner]], strict=True))
            inside = [index < axes[key][1] for key, index in here.items()]
            known = conjunction(prune([*inside, *[substitute(c, mapping) for c in side.conditions]], ana))
            value = substitute(side.value, mapping)
            return value if known is None else if_then_else(known, value, const(0, dtype))

        return compute([*outer, *[sizes[key] for key in inner]], body, f"{name}_{label}"), inner

    left, lefts = tile(product.left, "a", "left")
    right, rights = tile(product.right, "b", "right")
    k = reduce_axis(sizes["r"], "k")

    def product_part(*at: Any) -> Any:
        *lead, i, j = at
        index = {"a": i, "b": j, "r": k.var}
        return reduce_sum(left(*lead, *[index[n] for n in lefts]) * right(*lead, *[index[n] for n in rights]), k)

    products = compute([*outer, sizes["a"], sizes["b"]], product_part, f"{name}_part")
    sums = scan(products, axis=place["r"], name=f"{name}_sum")

    def element(i: Any, j: Any, part: Any = None) -> Any:
        at = {"a": tirx.floordiv(i, sizes["a"]), "b": tirx.floordiv(j, sizes["b"]), "part": part, "r": counts["r"] - 1}
        return sums(*[at[key] for key in order], tirx.floormod(i, sizes["a"]), tirx.floormod(j, sizes["b"]))

    if parts == 1:
        return compute(list(y.shape), element, name)
    shared = compute([parts, *y.shape], lambda p, i, j: element(i, j, p), f"{name}_parts")
    p = reduce_axis(parts, "part")
    return compute(list(y.shape), lambda i, j: reduce_sum(shared(p.var, i, j), p), name, {EVERYWHERE: "1"})


def _parts(counts: dict[str, Any]) -> int:
    """How many tasks share the sum of a block; more than one where the number of blocks is known, but not that of steps."""
    blocks = [const_int(counts[key]) for key in ("a", "b")]
    if None in blocks or const_int(counts["r"]) is not None:
        return 1
    return max(1, min(MOST, TASKS // math.prod(n for n in blocks if n is not None)))


def _block(extent: Any, most: int) -> int:
    """The extent of a block: a multiple of sixteen, at most `most`."""
    known = const_int(extent)
    return most if known is None else min(most, -(-known // 16) * 16)


def _inlined(expr: Any) -> Any:
    """`expr` with pointwise stages written out."""

    def swap(call: Any) -> Any:
        if not is_load(call) or stages.kind(load_tensor(call)) != "map":
            return call
        source = load_tensor(call)
        return _inlined(substitute(stages.body(source), dict(zip(stages.axes(source), load_indices(call), strict=True))))

    return rewrite(expr, ir.Call, swap)


def _guarded(expr: Any) -> tuple[Any, list[Any]]:
    """An expression that is 0 unless all of some conditions hold: (what it is then, the conditions)."""
    if call_name(expr) == "if_then_else" and is_const(expr.args[2], 0):
        value, inner = _guarded(expr.args[1])
        return value, [*conjuncts(expr.args[0]), *inner]
    return expr, []


def _uses(expr: Any, variable: Any) -> bool:
    return any(v.same_as(variable) for v in variables(expr))


def _contiguous(value: Any, own: Any, over: Any) -> Any:
    """Which of two variables is the last index of what an operand reads; the contracted one where neither is."""
    last = [load_indices(load)[-1] for load in find(value, is_load)]
    return own if any(hasattr(i, "same_as") and i.same_as(own) for i in last) else over
