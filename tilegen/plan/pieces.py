"""Long lists of a tile in pieces: what a task cannot hold as a whole it walks.

A tile whose rows meet a list of keys that is too long to be held, as a wide window is, is said again with the list's axis cut into pieces,
an outer axis s before the number of the tile::

    S[b, c, i, j] = ..                              S'[b, s, c, i, k] = ..   where j = s K + k
    y[b, c, i] = sum over j of f(S[b, c, i, j])     P[b, s, c, i] = sum over k of f(S'[b, s, c, i, k])
                                                    y[b, c, i] = (sum of P over 0 .. s, a scan)[b, last, c, i]

So a task owns the tile and walks the list with its sums in registers; what needs a sum as a whole (the shares of a softmax its
denominator) is another walk, which computes the list's stages again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import ir, te, tirx

from tilegen.autodiff.ranges import analyzer
from tilegen.expression import compute, reduce_axis, scan
from tilegen.expression.walkers import const_int, is_load, load_indices, load_tensor, rewrite, substitute, topological
from tilegen.plan import stages
from tilegen.plan.frames import LAST, inner, outer, outer_rank

LONGEST = 640
"""Elements of a list that a task holds: twice as many rows of 64 numbers fill the shared memory of a block."""

PIECE = 64
"""Elements of a piece at most."""

LEAST = 8
"""And at least: lists without such a divisor stay whole."""


def in_pieces(outputs: Sequence[te.Tensor]) -> list[te.Tensor]:
    """`outputs` with long lists in pieces; as they are where no list is too long, or none of its divisors will do."""
    tensors = [op.output(k) for op in topological(outputs) for k in range(op.num_outputs)]
    extents = {n for t in tensors for n in _over(t)}
    if len(extents) == 0 or any(_pieces(n) is None for n in extents) or not all(_fits(t, extents) for t in tensors):
        return list(outputs)
    made = Pieces(extents)
    return [made.whole(y) for y in outputs]


def _pieces(extent: int) -> int | None:
    """The elements of a piece: a divisor, a multiple of sixteen if there is one."""
    divisors = [n for n in range(LEAST, PIECE + 1) if extent % n == 0]
    return max(divisors, key=lambda n: (n % 16 == 0, n), default=None)


def _over(tensor: te.Tensor) -> list[int]:
    """The extents of long lists that a stage of a tile reduces."""
    if stages.kind(tensor) != "reduce" or outer_rank(tensor) < 2:
        return []
    known = [const_int(axis.dom.extent) for axis in stages.reduce_axes(tensor)]
    return [n for n in known if n is not None and n > LONGEST]


def _long(tensor: te.Tensor, extents: set[int]) -> list[int]:
    """The inner axes of a stage that are long lists."""
    rank = outer_rank(tensor)
    if rank < 2 or stages.kind(tensor) not in ("map", "reduce"):
        return []
    return [rank + k for k, n in enumerate(inner(tensor)) if const_int(n) in extents]


def _fits(tensor: te.Tensor, extents: set[int]) -> bool:
    """Whether a stage can be cut: it has one long list at most, and no scan or scatter-add runs over any."""
    if stages.kind(tensor) in ("scan", "scatter"):
        return not any(const_int(n) in extents for n in tensor.shape)
    return len(_long(tensor, extents)) + len(_over(tensor)) <= 1


class Pieces:
    """The rewriting: stages of tiles by whether they are said for a piece (`lifted`) or for all of a list (`whole`)."""

    def __init__(self, extents: set[int]):
        self.extents = extents
        self.wholes: dict[te.Tensor, te.Tensor] = {}
        self.lifts: dict[tuple[te.Tensor, int], te.Tensor] = {}

    def whole(self, tensor: te.Tensor) -> te.Tensor:
        """`tensor` with the shape that it has; one that has a long list itself is read from its pieces."""
        if tensor not in self.wholes:
            self.wholes[tensor] = self._whole(tensor)
        return self.wholes[tensor]

    def _whole(self, tensor: te.Tensor) -> te.Tensor:
        kind = stages.kind(tensor)
        if kind == "input":
            return tensor
        if _over(tensor):
            return self._summed(tensor)
        if kind in ("scan", "scatter"):
            from tilegen.expression.rebuild import rebuilt

            inputs = [self.whole(x) for x in tensor.op.inputs]
            return rebuilt(tensor.op, tensor.value_index, {}, inputs)
        body = rewrite(tensor.op.body[0], ir.Call, lambda call: self._read(call) if is_load(call) else call)
        if _long(tensor, self.extents):
            (k,) = _long(tensor, self.extents)
            size = _pieces(const_int(tensor.shape[k]) or 1) or 1
            lifted = self.lifted(tensor, const_int(tensor.shape[k]) or 1)
            return compute(list(tensor.shape), lambda *i: self._at(tensor, lifted, list(i), k, size), tensor.op.name)
        return te._ffi_api.ComputeOp(tensor.op.name, tensor.op.tag, tensor.op.attrs, tensor.op.axis, [body]).output(0)

    def _read(self, call: Any) -> Any:
        """A read by a stage that is not cut itself."""
        source, at = load_tensor(call), load_indices(call)
        found = _long(source, self.extents)
        if not found:
            return self.whole(source)(*at)
        length = const_int(source.shape[found[0]]) or 1
        return self._at(source, self.lifted(source, length), at, found[0], _pieces(length) or 1)

    @staticmethod
    def _at(source: te.Tensor, lifted: te.Tensor, at: list[Any], k: int, size: int) -> Any:
        """The element `at` of `source` in its pieces."""
        last = outer_rank(source) - 1
        place = [tirx.floormod(i, size) if n == k else i for n, i in enumerate(at)]
        return lifted(*place[:last], tirx.floordiv(at[k], size), *place[last:])

    def lifted(self, tensor: te.Tensor, length: int) -> te.Tensor:
        """A stage of a tile for one piece of a list of `length`: with the piece's number before that of the tile."""
        if (tensor, length) not in self.lifts:
            self.lifts[tensor, length] = self._lifted(tensor, length)
        return self.lifts[tensor, length]

    def _lifted(self, tensor: te.Tensor, length: int) -> te.Tensor:
        size, last = _pieces(length) or 1, outer_rank(tensor) - 1
        own, reduced = stages.axes(tensor), stages.reduce_axes(tensor) if stages.kind(tensor) == "reduce" else []
        long = [k for k in _long(tensor, self.extents) if const_int(tensor.shape[k]) == length]
        shape: list[Any] = [size if k in long else n for k, n in enumerate(tensor.shape)]
        shape = [*shape[:last], length // size, *shape[last:]]
        axes = [reduce_axis(axis.dom.extent, axis.var.name) for axis in reduced]

        def point(*i: Any) -> Any:
            s, rest = i[last], [*i[:last], *i[last + 1 :]]
            mapping = {v: s * size + x if k in long else x for k, (v, x) in enumerate(zip(own, rest, strict=True))}
            mapping |= {old.var: new.var for old, new in zip(reduced, axes, strict=True)}
            ranges = [*zip(i, shape, strict=True), *[(axis.var, axis.dom.extent) for axis in axes]]
            body = self._piece(tensor, mapping, s, length, ranges)
            return _reducer(tensor)(body, axis=axes) if axes else body

        names = [v.name for v in own]
        return compute(shape, point, tensor.op.name, dict(tensor.op.attrs), axes=[*names[:last], "s", *names[last:]])

    def _summed(self, tensor: te.Tensor) -> te.Tensor:
        """A reduction over a long list: the last of a scan over its pieces."""
        (length,), last = _over(tensor), outer_rank(tensor) - 1
        size, own, reduced = _pieces(length) or 1, stages.axes(tensor), stages.reduce_axes(tensor)
        shape = [*tensor.shape[:last], length // size, *tensor.shape[last:]]
        long = [const_int(axis.dom.extent) == length for axis in reduced]
        axes = [reduce_axis(size if cut else axis.dom.extent, axis.var.name) for axis, cut in zip(reduced, long, strict=True)]

        def point(*i: Any) -> Any:
            s, rest = i[last], [*i[:last], *i[last + 1 :]]
            mapping = dict(zip(own, rest, strict=True))
            for old, new, cut in zip(reduced, axes, long, strict=True):
                mapping[old.var] = s * size + new.var if cut else new.var
            ranges = [*zip(i, shape, strict=True), *[(axis.var, axis.dom.extent) for axis in axes]]
            return _reducer(tensor)(self._piece(tensor, mapping, s, length, ranges), axis=axes)

        names, name = [v.name for v in own], tensor.op.name
        parts = compute(shape, point, f"{name}_part", axes=[*names[:last], "s", *names[last:]])
        kind: Any = stages.reduction(tensor)
        sums = scan(parts, axis=last, kind=kind, name=f"{name}_walk")
        end = length // size - 1
        return compute(
            list(tensor.shape), lambda *i: sums(*i[:last], end, *i[last:]), name, {**dict(tensor.op.attrs), LAST: "1"}, axes=names
        )

    def _piece(self, tensor: te.Tensor, mapping: dict[Any, Any], s: Any, length: int, ranges: Any) -> Any:
        """The body of a stage at a point of piece `s`: stages of the tile are read in that piece, others as they are."""
        ana, size = analyzer(ranges), _pieces(length) or 1
        simple = lambda i: ana.simplify(i) if hasattr(i, "ty") else i  # noqa: E731

        def read(call: Any) -> Any:
            if not is_load(call):
                return call
            source, at = load_tensor(call), [simple(substitute(i, mapping)) for i in load_indices(call)]
            found = _long(source, self.extents)
            if found and const_int(source.shape[found[0]]) == length and self._is_here(tensor, source, at, mapping):
                k, last = found[0], outer_rank(source) - 1
                place = [simple(i - s * size) if n == k else i for n, i in enumerate(at)]
                return self.lifted(source, length)(*place[:last], s, *place[last:])
            if found:
                k = found[0]
                whole = const_int(source.shape[k]) or 1
                return self._at(source, self.lifted(source, whole), at, k, _pieces(whole) or 1)
            # What a piece is computed from is loaded with it; what was summed over a list is read as it is.
            below = stages.kind(source) == "map" and not _sums_below(source) and self._is_here(tensor, source, at, mapping)
            if below and outer_rank(source) >= 2 and len(inner(source)) >= 1:
                last = outer_rank(source) - 1
                return self.lifted(source, length)(*at[:last], s, *at[last:])
            return self.whole(source)(*at)

        return substitute(rewrite(stages.body(tensor), ir.Call, read), mapping)

    @staticmethod
    def _is_here(tensor: te.Tensor, source: te.Tensor, at: list[Any], mapping: dict[Any, Any]) -> bool:
        """Whether `source` is a stage of the same tiles, read at the same one."""
        rank = outer_rank(tensor)
        same = stages.same_extents(outer(source), outer(tensor))
        return same and all(stages.equal(i, mapping[v]) for i, v in zip(at[:rank], stages.axes(tensor)[:rank], strict=True))


def _sums_below(tensor: te.Tensor) -> bool:
    """Whether a pointwise stage is computed from a reduction or scan."""
    return any(stages.is_anchor(x) or (stages.kind(x) == "map" and _sums_below(x)) for x, _ in stages.reads(tensor))


def _reducer(tensor: te.Tensor) -> Any:
    return {"sum": te.sum, "max": te.max, "min": te.min}[stages.reduction(tensor)]
