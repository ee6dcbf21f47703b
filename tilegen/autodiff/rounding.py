"""Rounding the operands of matrix products, as the author's forward does.

Adjoints of half tensors are float32, so the products of a backward would have float32 operands, which no
tensor core takes.  The forward of a half operator rounds an intermediate where it casts it before a product;
this pass does the same for the products of a generated graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from tilegen.autodiff.simplify import is_contraction, split_guard
from tilegen.expression.rebuild import rebuilt, replace
from tilegen.expression.walkers import WIDE, Expr, dtype_of, factors, is_load, prim, rewrite, same, variables


def round_operands(outputs: Sequence[te.Tensor], dtype: str) -> list[te.Tensor]:
    """`outputs` with every wide operand of a matrix product rounded to `dtype` ("float16" or "bfloat16").

    The products still accumulate in the wide dtype.  With any other `dtype` the graph stays as it is.
    """
    if dtype not in WIDE:
        return list(outputs)

    def change(op: te.Operation, inputs: list[te.Tensor]) -> te.Tensor | None:
        wide = rounded_reads(op, dtype)
        if not wide:
            return None
        mapping = dict(zip(op.input_tensors, inputs, strict=True))
        body = rewrite_reads(op.body[0], wide, dtype)
        rounded = te._ffi_api.ComputeOp(op.name, op.tag, op.attrs, op.axis, [body])
        return rebuilt(rounded, 0, mapping, [])

    return replace(outputs, {}, change)


def rounded_reads(op: te.Operation, dtype: str) -> list[Expr]:
    """The reads of `op` that are wide operands of a matrix product."""
    if not isinstance(op, te.ComputeOp) or not isinstance(op.body[0], tirx.Reduce):
        return []
    reduce = op.body[0]
    if not isinstance(reduce.combiner.result[0], prim.Add) or dtype_of(reduce) != WIDE[dtype]:
        return []
    inner = {axis.var for axis in reduce.axis}
    operands = [f for f in factors(split_guard(reduce.source[0])[1]) if inner & set(variables(f))]
    if len(operands) != 2 or not is_contraction(*operands, inner):
        return []
    return [f for f in operands if is_load(f)]


def rewrite_reads(body: Expr, wide: list[Expr], dtype: str) -> Expr:
    """`body` with the reads `wide` rounded to `dtype` and back."""

    def swap(product: Any) -> Any:
        return _rounded(product.a, wide, dtype) * _rounded(product.b, wide, dtype)

    return rewrite(body, prim.Mul, swap)


def _rounded(expr: Expr, wide: list[Expr], dtype: str) -> Expr:
    if is_load(expr) and any(same(expr, read) for read in wide):
        return expr.astype(dtype).astype(dtype_of(expr))
    return expr
