"""Floor division as the division of the machine, wherever no negative number can meet it.

TVM knows nothing about the sizes of tensors, so it rounds every quotient by a symbolic size with comparisons and corrections.
Sizes are at least one, indices of blocks, threads and loops from zero at least zero; most divisions follow from that.
"""

from __future__ import annotations

from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import ir, sym, tirx  # noqa: E402

LARGEST = 2**31 - 1


def truncated(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with truncating division and remainder where operands are known not to be negative."""
    analyzer = sym.Analyzer()
    known: set[Any] = set()

    def bind(var: Any, low: int) -> None:
        if var not in known and str(var.ty.dtype).startswith(("int", "uint")):
            known.add(var)
            analyzer.bind(var, ir.Range.from_min_extent(low, LARGEST - low))

    for param in func.params:
        for dim in getattr(param.ty, "shape", ()):
            tvm_ffi.structural_walk(dim, (ir.Var, lambda var: bind(var, 1)))

    def at_least_zero(expr: Any) -> bool:
        return analyzer.const_int_bound(expr).min_value >= 0

    def loop(node: Any) -> None:
        if at_least_zero(node.min):
            bind(node.loop_var, 0)

    def launch(node: Any) -> None:
        if node.attr_key == "thread_extent":
            bind(node.node.var, 0)

    def named(node: Any) -> None:
        if str(getattr(node.var.ty, "dtype", "")).startswith("int") and node.var not in known and at_least_zero(node.value):
            bind(node.var, 0)

    # In program order, so that what a bound value is made of is known before it.
    tvm_ffi.structural_walk(func.body, [(tirx.For, loop), (tirx.AttrStmt, launch), (tirx.Bind, named)], order="pre")

    def simple(node: Any) -> bool:
        return at_least_zero(node.a) and analyzer.const_int_bound(node.b).min_value >= 0

    def divide(node: Any) -> Any:
        return tirx.truncdiv(node.a, node.b) if simple(node) else node

    def remainder(node: Any) -> Any:
        return tirx.truncmod(node.a, node.b) if simple(node) else node

    return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.FloorDiv, divide), (tirx.FloorMod, remainder)]))


@tirx.transform.prim_func_pass(opt_level=0)
def TruncateDivisions(func: tirx.PrimFunc, mod: tvm.IRModule, context: Any) -> tirx.PrimFunc:
    """See `truncated`."""
    return truncated(func)
