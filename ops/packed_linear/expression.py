"""A linear map of the first n rows as one tensor expression::

    y_r = W x_r + b     r < n          y_r = 0     otherwise

Rows from n on are behind the condition: they are not read, give zeros, and send no gradient to W and b.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tilegen.expression import compute, const, if_then_else, reduce_axis, reduce_sum

Tensor = te.Tensor


def forward(config: Any, dims: Any, x: Tensor, weight: Tensor, count: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """`x` [R, D], `weight` [E, D], `bias` [E], `count` [1] -> y [R, E]."""
    acc, zero = dims.acc, const(0, dims.acc)
    d = reduce_axis(dims.D, "d")

    def used(r: Any, value: Any) -> Any:
        return if_then_else(r < count[0], value, zero)

    product = compute(
        (dims.R, dims.E),
        lambda r, e: reduce_sum(used(r, x[r, d.var].astype(acc)) * weight[e, d.var].astype(acc), d),
        name="product",
    )

    def row(r: Any, e: Any) -> Any:
        value = product[r, e] if bias is None else product[r, e] + bias[e].astype(acc)
        return used(r, value).astype(dims.io)

    return (compute((dims.R, dims.E), row, name="y"),)
