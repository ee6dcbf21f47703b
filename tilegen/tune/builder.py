"""From a scheduled module to a shared library, in a worker process; and what a module's function takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import tirx  # noqa: E402
from tvm.target import Target  # noqa: E402

from tilegen.build import library  # noqa: E402
from tilegen.build.link import link  # noqa: E402
from tilegen.build.target import BuildTarget  # noqa: E402
from tilegen.schedules.rule import Machine  # noqa: E402
from tilegen.tune.case import Argument  # noqa: E402

SYMBOL = "main"
"""The function of a candidate's module and library."""


def setup() -> None:
    """Import what building needs before the first candidate's clock starts."""
    import tilegen.plan.plan  # noqa: F401  # registers the operators that kernels may hold


def build(module: str, target: str, out: str) -> None:
    """Compile the module in `module` (JSON) for `target` (JSON) and write the library `out`."""
    compile_to(tvm.ir.load_json(module), Target(json.loads(target)), Path(out))


def compile_to(mod: tvm.IRModule, target: Target, out: Path) -> None:
    """Compile a module with the function "main" into the library `out`."""
    link(generate(mod, target), out)


def generate(mod: tvm.IRModule, target: Target) -> Any:
    """Machine code for a module with the function "main", by the same path as for a bundle."""
    described = BuildTarget(target, Machine(), "", json.loads(str(target)))
    return library.generate({SYMBOL: mod[SYMBOL].with_attr("global_symbol", SYMBOL)}, described)


def arguments(mod: tvm.IRModule, sizes: Mapping[str, int]) -> list[Argument]:
    """The buffers of a module's function, in call order, with symbolic sizes replaced by `sizes`.

    A buffer that the function stores to is an output, which it must write whole.
    """
    function = mod[SYMBOL]
    stores: list[Any] = []
    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, stores.append))
    made = []
    for param in function.params:
        shape = tuple(evaluate(dim, sizes) for dim in param.ty.shape)
        written = any(store.buffer.same_as(param) for store in stores)
        made.append(Argument(str(param.name), shape, str(param.ty.dtype), written))
    return made


def specialise(mod: tvm.IRModule, sizes: Mapping[str, int]) -> tvm.IRModule:
    """`mod` with symbolic sizes replaced by `sizes`: what the cost model can read extents from."""
    function = mod[SYMBOL]
    fixed = {}
    for param in function.params:
        if not all(isinstance(dim, tirx.Var | tirx.IntImm) for dim in param.ty.shape):
            continue  # follows from the buffers that have the sizes as dims of their own
        shape = [evaluate(dim, sizes) for dim in param.ty.shape]
        fixed[param] = tirx.decl_buffer(shape, str(param.ty.dtype), name=str(param.name))
    return tvm.IRModule({SYMBOL: function.specialize(fixed)})


def evaluate(dim: Any, sizes: Mapping[str, int]) -> int:
    """The value of a dim with its variables replaced by name."""

    def value(var: Any) -> Any:
        return tirx.const(sizes[str(var.name)], "int32") if str(var.name) in sizes else var

    found = tvm.sym.Analyzer().simplify(tvm_ffi.structural_map(dim, (tirx.Var, value)))
    return int(found)
