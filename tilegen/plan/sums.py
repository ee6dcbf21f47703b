"""Float32 sums inside a tile, added up as a tree.

A serial sum of n float32 terms is off by up to n/2 units in the last place, and where the terms are alike it is: a softmax over
n equal logits then has a gradient that should be zero and is not.  A tree is off by their logarithm, and exact for 2^k equal terms::

    part[p] = tree over u < LEAVES of x[u P + p]      P trees side by side: where they are the vectors, reads are contiguous
    y = tree over p of part[p]                        with more levels between if there are many

A contraction stays one chain of fused multiply-adds, as in every matrix product: its operands are used again and again from
registers, where parts would have to be stored and read back.  It begins with what is farthest away, since a decay makes that
small: small terms are added while the sum is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import sym, te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.autodiff.simplify import split_guard
from tilegen.autodiff.solver import linear
from tilegen.expression.walkers import call_name, const_int, find, is_load, prim, variables
from tilegen.plan import stages
from tilegen.plan.frames import outer_rank

if TYPE_CHECKING:
    from tilegen.plan.emit_tile import TileEmitter
    from tilegen.plan.tile_values import TileEvaluator

LEAVES = 16
"""Terms that one expression adds up."""

Values = Callable[[list[Any], list[Any], sym.Analyzer], "TileEvaluator"]
Term = Callable[[list[Any], list[Any], Any, sym.Analyzer], Any]
"""``term(outer, inner, number, analyzer)``: one of the terms of the sum at a point."""


def is_row_sum(tensor: te.Tensor) -> bool:
    """Whether a reduction is a float32 sum of at least three terms, each with an operand that is read for no other."""
    if stages.reduction(tensor) != "sum" or str(tensor.dtype) != "float32":
        return False
    if prod(const_int(axis.dom.extent) for axis in stages.reduce_axes(tensor)) < 3:
        return False
    over = [axis.var for axis in stages.reduce_axes(tensor)]
    wide = [axis for axis, extent in zip(stages.axes(tensor), tensor.shape, strict=True) if const_int(extent) != 1]
    every = {*over, *wide}
    return any(
        every <= {v for index in indices for v in variables(index)} and not any(_slides(index, over, wide) for index in indices)
        for _, indices in stages.reads(tensor)
    )


def _slides(index: Any, over: Sequence[Any], wide: Sequence[Any]) -> bool:
    """Whether the reduced axis and one of the result move along the same elements, as in the taps of a convolution: i + j, i - j."""
    steps, _ = linear(index, {*over, *wide})
    return bool({abs(n) for v, n in steps.items() if v in over} & {abs(n) for v, n in steps.items() if v in wide})


def farthest_first(tensor: te.Tensor, steps: Sequence[Any], reverse: bool) -> list[Any]:
    """The steps of a reduction counted from the far end where that is the last one.

    A triangular operand says which end is far: ``j <= i`` keeps what lies before i, so the first j are farthest from it.  Where none
    does, it is that from which the kernel's walk comes.
    """
    over = stages.reduce_axes(tensor)
    last = [_far_end(tensor, axis.var) for axis in over]
    turned = [reverse if far is None else far for far in last]
    return [n.dom.extent - 1 - step if turn else step for n, step, turn in zip(over, steps, turned, strict=True)]


def _far_end(tensor: te.Tensor, step: Any) -> bool | None:
    """Whether the last steps are farthest from an element; None where no operand is triangular in them."""
    for source, indices in stages.reads(tensor):
        place = next((k for k, index in enumerate(indices or []) if index.same_as(step)), None)
        if place is None or stages.kind(source) != "map":
            continue
        own, inner = stages.axes(source)[place], stages.axes(source)[outer_rank(source) :]
        for condition in split_guard(stages.body(source))[0]:
            if not isinstance(condition, (prim.LE, prim.LT, prim.GE, prim.GT)):
                continue
            for side, other, lower in ((condition.a, condition.b, True), (condition.b, condition.a, False)):
                if own.same_as(side) and any(v in inner for v in variables(other)):
                    return lower != isinstance(condition, (prim.LE, prim.LT))
    return None


def emit_row_sum(emitter: TileEmitter, tensor: te.Tensor, at: Sequence[Any], values: Values) -> None:
    """Nests that sum `tensor` into its local buffer; ``values(outer, inner, analyzer)`` evaluates at a point of the result."""
    extents, rank = emitter.inner_of(tensor), emitter.rank
    ranges = [const_int(axis.dom.extent) for axis in stages.reduce_axes(tensor)]
    count, level = prod(ranges), 0
    body = stages.body(tensor)

    def computed(outer: list[Any], inner: list[Any], number: Any, analyzer: sym.Analyzer) -> Any:
        steps: list[Any] = []
        number = tirx.const(number, "int32") if isinstance(number, int) else number
        for extent in reversed(ranges[1:]):
            steps.insert(0, tirx.floormod(number, extent))
            number = tirx.floordiv(number, extent)
        return values(outer, inner, analyzer).term_value(tensor, [number, *steps])

    def buffer(name: str, parts: int) -> Any:
        shape = [*list(tensor.shape)[:rank], *_joined(extents, extents, parts)]
        return emitter.buffer(f"{tensor.op.name}_{name}", shape, tensor)

    term: Term = computed
    # A tree repeats its term: what is more than a few operations is computed first.
    if find(body, lambda e: call_name(e) is not None and not is_load(e) and call_name(e) != "if_then_else"):
        terms = buffer("terms", count)
        _nest(emitter, at, extents, terms, 0, count, lambda outer, inner, p, analyzer: computed(outer, inner, p, analyzer))
        term = _read(terms, extents)
    while count > LEAVES:
        full, rest = divmod(count, LEAVES)
        parts = buffer(f"part{level}", full + (rest > 0))
        _nest(emitter, at, extents, parts, 0, full, _tree(term, LEAVES, lambda u, p, full=full: u * full + p))
        if rest:
            _nest(emitter, at, extents, parts, full, 1, _tree(term, rest, lambda u, p, full=full: full * LEAVES + u))
        term, count, level = _read(parts, extents), full + (rest > 0), level + 1
    target, whole = emitter.local[tensor], _tree(term, count, lambda u, p: u)

    def last(outer: list[Any], inner: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
        T.buffer_store(target, whole(outer, inner, 0, analyzer), [*outer, *inner])

    emitter.nest("sum", at, extents, [], last)


def _tree(term: Term, count: int, number: Callable[[int, Any], Any]) -> Term:
    """The sum of `count` terms, of which ``number(u, p)`` is the u-th of tree p."""

    def added(outer: list[Any], inner: list[Any], part: Any, analyzer: sym.Analyzer) -> Any:
        terms = [term(outer, inner, number(u, part), analyzer) for u in range(count)]
        while len(terms) > 1:
            terms = [sum(terms[k + 1 : k + 2], terms[k]) for k in range(0, len(terms), 2)]
        return terms[0]

    return added


def _nest(
    emitter: TileEmitter, at: Sequence[Any], extents: Sequence[Any], target: Any, first: int, count: int, value: Term
) -> None:
    """``target[.., first + p, ..] = value(p)`` for p < count."""

    def body(outer: list[Any], loops: list[Any], _: list[Any], analyzer: sym.Analyzer) -> None:
        place = len(loops) - 1 - _behind(extents)
        inner, part = [*loops[:place], *loops[place + 1 :]], loops[place]
        T.buffer_store(target, value(outer, inner, part, analyzer), [*outer, *_joined(inner, extents, part + first)])

    emitter.nest("sum", at, _joined(extents, extents, count), [], body)


def _read(buffer: Any, extents: Sequence[Any]) -> Term:
    return lambda outer, inner, number, analyzer: buffer[(*outer, *_joined(inner, extents, number))]


def _behind(extents: Sequence[Any]) -> int:
    """How many axes of the result come behind that of the parts: the last, which runs in vectors, if it has more than one point."""
    return 1 if extents and const_int(extents[-1]) != 1 else 0


def _joined(items: Sequence[Any], extents: Sequence[Any], part: Any) -> list[Any]:
    """`items`, one for every inner axis, with that of the parts among them."""
    at = len(items) - _behind(extents)
    return [*items[:at], part, *items[at:]]
