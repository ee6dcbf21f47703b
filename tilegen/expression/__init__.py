"""Safe tensor expressions: what a mechanism's folder writes, and what the compiler passes on."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()

from tilegen.expression.gather import ScatterSpec, gather, scatter_add  # noqa: E402 - TVM must be checked first
from tilegen.expression.pack import Packed, pack  # noqa: E402
from tilegen.expression.scalars import (  # noqa: E402 - TVM must be checked before it is imported
    absolute,
    all_of,
    any_of,
    cast,
    ceildiv,
    const,
    erf,
    exp,
    exp2,
    floordiv,
    floormod,
    gelu,
    if_then_else,
    log,
    log1p,
    logaddexp,
    maximum,
    minimum,
    power,
    rsqrt,
    sigmoid,
    silu,
    softplus,
    sqrt,
    tanh,
)
from tilegen.expression.scan import ScanSpec, scan  # noqa: E402
from tilegen.expression.stages import (  # noqa: E402
    compute,
    placeholder,
    reduce_axis,
    reduce_max,
    reduce_min,
    reduce_sum,
    stop_gradient,
)

__all__ = [
    "Packed",
    "ScanSpec",
    "ScatterSpec",
    "absolute",
    "all_of",
    "any_of",
    "cast",
    "ceildiv",
    "compute",
    "const",
    "erf",
    "exp",
    "exp2",
    "floordiv",
    "floormod",
    "gather",
    "gelu",
    "if_then_else",
    "log",
    "log1p",
    "logaddexp",
    "maximum",
    "minimum",
    "pack",
    "placeholder",
    "power",
    "reduce_axis",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "rsqrt",
    "scan",
    "scatter_add",
    "sigmoid",
    "silu",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
]
