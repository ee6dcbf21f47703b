"""Small tools on TVM expressions and TE graphs: find, substitute, compare, walk.

Everything that looks inside an expression goes through here, so that TVM's quirks are met once: tensor
reads have no structural hash, variables must be replaced inside indices too, and a graph is more than
one expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, sym, te, tirx

prim = ir.prim.expr
Expr = Any
"""A scalar TVM expression; `tvm.ir.Expr`, or an int where an extent may be one."""

WIDE = {"float16": "float32", "bfloat16": "float32"}
"""The dtype in which values of a narrow dtype are accumulated."""

SYMBOLIC_GUESS = 16
"""What a symbolic extent counts as where only an estimate is needed."""


def substitute(expr: Expr, mapping: Mapping[Any, Any]) -> Expr:
    """`expr` with variables replaced, also inside the indices of tensor reads."""
    if not mapping or isinstance(expr, int):
        return expr
    return tvm_ffi.structural_map(expr, (ir.Var, lambda v: mapping.get(v, v)))


def rewrite(expr: Expr, kind: type, change: Callable[[Any], Any]) -> Expr:
    """`expr` with `change` applied to every node of type `kind`, inner nodes first."""
    return tvm_ffi.structural_map(expr, (kind, change))


def find(expr: Expr, predicate: Callable[[Any], bool]) -> list[Any]:
    """All subexpressions for which `predicate` holds, inner ones last."""
    if isinstance(expr, int):
        return []
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, (ir.Expr, lambda e: found.append(e) if predicate(e) else None))
    return found


def is_load(expr: Expr) -> bool:
    """Whether `expr` reads one element of a tensor."""
    return isinstance(expr, ir.Call) and expr.op.name == "te.tensor_load"


def load_tensor(load: Expr) -> te.Tensor:
    """The tensor that a read reads."""
    return load.args[0]


def load_indices(load: Expr) -> list[Expr]:
    """The indices of a read."""
    return list(load.args[1:])


def loads(expr: Expr) -> list[Any]:
    """All tensor reads in `expr`, in the order in which they are met."""
    return find(expr, is_load)


def has_load(expr: Expr) -> bool:
    """Whether `expr` reads any tensor."""
    return bool(loads(expr))


def variables(expr: Expr) -> list[Any]:
    """The variables in `expr`, with repetitions."""
    return find(expr, lambda e: isinstance(e, ir.Var))


def call_name(expr: Expr) -> str | None:
    """The name of a called intrinsic without its namespace ("exp", "if_then_else"), or None."""
    return expr.op.name.split(".")[-1] if isinstance(expr, ir.Call) else None


def const_int(expr: Expr) -> int | None:
    """The value of an integer constant, or None."""
    if isinstance(expr, int):
        return expr
    return int(expr.value) if isinstance(expr, prim.IntImm) else None


def is_const(expr: Expr, value: float) -> bool:
    """Whether `expr` is the literal `value`."""
    return isinstance(expr, (prim.FloatImm, prim.IntImm)) and expr.value == value


def dtype_of(expr: Expr) -> str:
    """The dtype of a scalar expression as text."""
    return str(expr.ty.dtype)


def is_float(expr: Expr) -> bool:
    """Whether `expr` has a floating dtype."""
    return dtype_of(expr) in ("float16", "bfloat16", "float32", "float64")


def children(expr: Expr) -> list[Any]:
    """The direct operands of `expr` (the indices of a tensor read are its operands)."""
    if is_load(expr):
        return load_indices(expr)
    if isinstance(expr, ir.Call):
        return list(expr.args)
    if isinstance(expr, prim.Select):
        return [expr.condition, expr.true_value, expr.false_value]
    if isinstance(expr, prim.Cast):
        return [expr.value]
    if isinstance(expr, prim.Not):
        return [expr.a]
    if isinstance(expr, tirx.Reduce):
        return list(expr.source)
    return [expr.a, expr.b] if hasattr(expr, "a") and hasattr(expr, "b") else []


def same(a: Expr, b: Expr) -> bool:
    """Structural equality; reads are equal when tensor and indices are."""
    if a.same_as(b):
        return True
    if is_load(a) or is_load(b):
        return (
            is_load(a)
            and is_load(b)
            and same_tensor(a.args[0], b.args[0])
            and all(same(x, y) for x, y in zip(a.args[1:], b.args[1:], strict=True))
        )
    if not has_load(a) and not has_load(b):
        return bool(tvm_ffi.structural_equal(a, b, map_free_vars=False))
    if type(a) is not type(b) or call_name(a) != call_name(b) or dtype_of(a) != dtype_of(b):
        return False
    left, right = children(a), children(b)
    return bool(left) and len(left) == len(right) and all(same(x, y) for x, y in zip(left, right, strict=True))


def same_tensor(a: te.Tensor, b: te.Tensor) -> bool:
    """Whether two handles mean the same output of the same operation."""
    return a.same_as(b) or (a.op.same_as(b.op) and a.value_index == b.value_index)


def conjunction(conditions: Iterable[Expr]) -> Expr | None:
    """All conditions joined by and; None for none."""
    joined = None
    for condition in conditions:
        joined = condition if joined is None else tirx.And(joined, condition)
    return joined


def total(terms: Sequence[Expr]) -> Expr:
    """The sum of at least one term, from left to right."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def factors(expr: Expr) -> list[Any]:
    """The factors of a product, from left to right."""
    return factors(expr.a) + factors(expr.b) if isinstance(expr, prim.Mul) else [expr]


def operations(outputs: Iterable[te.Tensor]) -> Iterator[te.Operation]:
    """The operations below `outputs`, inputs first (see `topological`)."""
    return iter(topological(outputs))


def topological(outputs: Iterable[te.Tensor]) -> list[te.Operation]:
    """The operations below `outputs`, inputs first, every one once."""
    order: list[te.Operation] = []
    seen: set[Any] = set()
    stack = [(tensor.op, False) for tensor in reversed(list(outputs))]
    while stack:
        op, ready = stack.pop()
        if ready:
            order.append(op)
        elif op not in seen:
            seen.add(op)
            stack.append((op, True))
            stack.extend((tensor.op, False) for tensor in reversed(list(op.input_tensors)) if tensor.op not in seen)
    return order


def extent_estimate(extent: Expr, size: int = SYMBOLIC_GUESS) -> int:
    """An extent as a number, with `size` for every variable in it."""
    known = const_int(extent)
    if known is not None:
        return known
    guess = {v: tirx.const(size, dtype_of(v)) for v in variables(extent)}
    return const_int(sym.Analyzer().simplify(substitute(extent, guess))) or 1


def size_estimate(shape: Iterable[Expr], size: int = SYMBOLIC_GUESS) -> int:
    """The number of elements of a shape, as `extent_estimate` counts."""
    return math.prod(extent_estimate(extent, size) for extent in shape)


def same_shape(a: Sequence[Expr], b: Sequence[Expr]) -> bool:
    """Whether two shapes are provably equal."""
    return len(a) == len(b) and all(sym.Analyzer().can_prove(m == n) for m, n in zip(a, b, strict=True))
