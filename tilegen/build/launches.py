"""What a planned function launches on a GPU, as data: for machines where no host compiler makes a launcher of it.

Sizes are text over the names of symbolic sizes, as in a manifest; see `tilegen.runtime.cubin`, which reads this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import ir, tirx  # noqa: E402

from tilegen.errors import BuildError  # noqa: E402
from tilegen.expression.walkers import call_name, const_int  # noqa: E402

_SIGNS = {"Add": "+", "Sub": "-", "Mul": "*", "FloorDiv": "//", "Div": "//"}  # sizes are not negative: both divisions are one
SHARED = "tirx.use_dyn_shared_memory"


def launches(mod: tvm.IRModule) -> dict[str, list[dict[str, Any]]]:
    """By symbol the launches of each host function in order.

    Parameters
    ----------
    mod : a module that has been split into host functions and kernels.

    Returns
    -------
    dict
        Of each launch ``kernel``, the name in the cubin; ``arguments``: ``{"tensor": name}`` or ``{"size": text}``; ``grid`` and
        ``block``, three sizes each; ``shared``, bytes of dynamic shared memory; ``when`` for one of several that do the same: sizes
        (a, b, holds), ``a < b`` must be as `holds` says.
    """
    found = {var.name_hint: _of_function(func) for var, func in mod.functions.items()}
    return {symbol: made for symbol, made in found.items() if made}


def _of_function(func: tirx.PrimFunc) -> list[dict[str, Any]]:
    bound: dict[Any, Any] = {}
    found: list[dict[str, Any]] = []
    choices: list[Any] = []

    def call(node: Any) -> None:
        if call_name(node) == "call_ffi_kernel":
            found.append(_launch(node, bound))

    tvm_ffi.structural_walk(
        func.body,
        [(tirx.Bind, lambda node: bound.__setitem__(node.var, node.value)), (tirx.IfThenElse, choices.append), (ir.Call, call)],
        order="pre",
    )
    for choice in choices:
        for side, holds in ((choice.then_case, True), (choice.else_case, False)):
            names = [] if side is None else _launched(side)
            for one in (one for one in found if one["kernel"] in names):
                one["when"] = [*one.get("when", []), _condition(choice.condition, holds, bound)]
    return found


def _launched(body: Any) -> list[str]:
    """The names of the kernels that a statement launches."""
    calls: list[Any] = []
    tvm_ffi.structural_walk(body, (ir.Call, calls.append))
    return [str(call.args[0].value) for call in calls if call_name(call) == "call_ffi_kernel"]


def _condition(condition: Any, holds: bool, bound: Mapping[Any, Any]) -> tuple[int | str, int | str, bool]:
    """A comparison of sizes as (a, b, whether a < b)."""
    kind = type(condition).__name__
    if kind not in ("LT", "LE", "GT", "GE"):
        raise BuildError(f"a kernel is launched where {condition}, which does not compare sizes; build with nvcc, which compiles any")
    a, b = (size_text(side, bound) for side in (condition.a, condition.b))
    if kind in ("GT", "LE"):
        a, b = b, a
    return a, b, holds == (kind in ("LT", "GT"))  # a <= b where not b < a


def _launch(node: Any, bound: Mapping[Any, Any]) -> dict[str, Any]:
    tags = [str(tag) for tag in node.attrs["launch_params"]]
    kernel, *arguments = node.args
    arguments, values = arguments[: len(arguments) - len(tags)], arguments[len(arguments) - len(tags) :]
    sizes = {tag: size_text(value, bound) for tag, value in zip(tags, values, strict=True)}
    return {
        "kernel": str(kernel.value),
        "arguments": [_argument(argument, bound) for argument in arguments],
        "grid": [sizes.get(f"blockIdx.{axis}", 1) for axis in "xyz"],
        "block": [sizes.get(f"threadIdx.{axis}", 1) for axis in "xyz"],
        "shared": sizes.get(SHARED, 0),
    }


def _argument(value: Any, bound: Mapping[Any, Any]) -> dict[str, Any]:
    if call_name(value) == "buffer_data":
        return {"tensor": str(value.args[0].name)}
    return {"size": size_text(value, bound)}


def size_text(expr: Any, bound: Mapping[Any, Any]) -> int | str:
    """An integer expression over symbolic sizes as a number or as text.

    Raises
    ------
    BuildError
        When it is made of anything but sums, products and quotients.
    """
    value = const_int(expr)
    if value is not None:
        return value
    if isinstance(expr, tirx.Var):
        return size_text(bound[expr], bound) if expr in bound else str(expr.name)
    kind = type(expr).__name__
    if kind == "Cast":
        return size_text(expr.value, bound)
    if kind in ("Mod", "FloorMod"):
        a, b = size_text(expr.a, bound), size_text(expr.b, bound)
        return f"({a} - ({a} // {b}) * {b})"
    if kind not in _SIGNS:
        raise BuildError(f"a kernel is launched with the size {expr}, which has {kind}; build with nvcc, which compiles any size")
    return f"({size_text(expr.a, bound)} {_SIGNS[kind]} {size_text(expr.b, bound)})"
