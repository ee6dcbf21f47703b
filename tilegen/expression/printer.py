"""Text of expressions and graphs: one stage a line, tensors by name, no warnings.

TVM's own printer warns at every tensor read and writes tensors as metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import ir, te, tirx

from tilegen.expression.gather import scatter_spec
from tilegen.expression.scan import scan_inputs, scan_spec
from tilegen.expression.stages import is_stopped
from tilegen.expression.walkers import Expr, call_name, dtype_of, is_load, load_indices, load_tensor, prim, topological

BINARY: dict[Any, tuple[str, int]] = {
    prim.Or: ("or", 1),
    prim.And: ("and", 2),
    prim.EQ: ("==", 4),
    prim.NE: ("!=", 4),
    prim.LT: ("<", 4),
    prim.LE: ("<=", 4),
    prim.GT: (">", 4),
    prim.GE: (">=", 4),
    prim.Add: ("+", 5),
    prim.Sub: ("-", 5),
    prim.Mul: ("*", 6),
    prim.Div: ("/", 6),
    prim.FloorDiv: ("//", 6),
    prim.FloorMod: ("%", 6),
    prim.Mod: ("%", 6),
}
"""Operators with their binding strength."""


def text(expr: Expr, strength: int = 0) -> str:
    """`expr` as it would be written; parentheses where an operator of `strength` around it needs them."""
    if isinstance(expr, (int, float, str)):
        return str(expr)
    if isinstance(expr, ir.Var):
        return expr.name
    if isinstance(expr, (prim.IntImm, prim.FloatImm)):
        return _literal(expr)
    if is_load(expr):
        return f"{load_tensor(expr).op.name}[{', '.join(map(text, load_indices(expr)))}]"
    for kind, (sign, own) in BINARY.items():
        if isinstance(expr, kind):
            joined = f"{text(expr.a, own)} {sign} {text(expr.b, own + 1)}".replace(" + -", " - ")
            return f"({joined})" if own < strength else joined
    if isinstance(expr, prim.Not):
        return f"not {text(expr.a, 7)}"
    if isinstance(expr, (prim.Max, prim.Min)):
        return f"{type(expr).__name__.lower()}({text(expr.a)}, {text(expr.b)})"
    if isinstance(expr, prim.Cast):
        return f"{dtype_of(expr)}({text(expr.value)})"
    if isinstance(expr, prim.Select):
        return f"select({text(expr.condition)}, {text(expr.true_value)}, {text(expr.false_value)})"
    if isinstance(expr, tirx.Reduce):
        axes = ", ".join(f"{axis.var.name}: {text(axis.dom.extent)}" for axis in expr.axis)
        return f"{_reduction(expr)}[{axes}] {', '.join(map(text, expr.source))}"
    if isinstance(expr, ir.Call):
        name = {"if_then_else": "if", "fabs": "abs"}.get(call_name(expr), call_name(expr))
        return f"{name}({', '.join(map(text, expr.args))})"
    return f"<{type(expr).__name__}>"


def _literal(expr: Any) -> str:
    if dtype_of(expr) == "bool":
        return str(bool(expr.value))
    return f"{expr.value:.8g}" if isinstance(expr, prim.FloatImm) else str(expr.value)


def _reduction(expr: tirx.Reduce) -> str:
    kind = type(expr.combiner.result[0])
    return {prim.Add: "sum", prim.Max: "max", prim.Min: "min"}.get(kind, kind.__name__.lower())


def stage_text(op: te.Operation) -> str:
    """One stage as a line: name, axes with extents, dtype, body."""
    tensor = op.output(0)
    mark = "  # constant for differentiation" if is_stopped(op) else ""
    if isinstance(op, te.ComputeOp):
        axes = ", ".join(f"{axis.var.name}: {text(axis.dom.extent)}" for axis in op.axis)
        return f"{op.name}[{axes}] {tensor.dtype} = {', '.join(map(text, op.body))}{mark}"
    shape = ", ".join(map(text, tensor.shape))
    if (scan := scan_spec(op)) is not None:
        inputs = ", ".join(t.op.name if role == "x" else f"{role}={t.op.name}" for role, t in scan_inputs(op).items())
        flags = "".join(f", {flag}" for flag in ("reverse", "exclusive") if getattr(scan, flag))
        return f"{op.name}[{shape}] {tensor.dtype} = scan_{scan.kind}({inputs}, axis={scan.axis}{flags}){mark}"
    if (scatter := scatter_spec(op)) is not None:
        unique = ", unique" if scatter.unique else ""
        inputs = ", ".join(t.op.name for t in op.inputs)
        return f"{op.name}[{shape}] {tensor.dtype} = scatter_add({inputs}, axis={scatter.axis}{unique}){mark}"
    return f"{op.name}[{shape}] {tensor.dtype} = {type(op).__name__}"


def graph_text(outputs: Iterable[te.Tensor], hide: Iterable[te.Operation] = ()) -> str:
    """All computed stages below `outputs`, inputs first, one a line; not those in `hide`."""
    hidden = set(hide)
    shown = [op for op in topological(outputs) if not isinstance(op, te.PlaceholderOp) and op not in hidden]
    return "".join(f"{stage_text(op)}\n" for op in shown)
