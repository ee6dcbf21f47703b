"""What runs in building processes too: inputs, float64 references and limits of one kernel, at sizes that a CPU computes in a second."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tilegen.tune.builder import arguments

# isort: split
from tilegen.tune.case import Case
from tilegen.tune.device.build import Owner
from tilegen.tune.gate import Array, dtype_of, limit_around, limit_for
from tilegen.tune.planned import Exact, module_of

PASSED_ON = ("saved", "workspace")
"""Roles of what one kernel writes for another."""


@functools.lru_cache(maxsize=4)
def _exact(owner: Owner, twin: bool) -> Exact:
    return Exact(owner.plan, twin)


def prepare(
    instance: str, backward: bool, function: str, position: int, sizes: dict[str, dict[str, int]], seed: int, folder: str
) -> None:
    """Write a case for each of `sizes` into ``folder/<name>``.

    Inputs are what the whole function has in these arguments in float64.  The limits come from the unscheduled kernel.
    """
    owner = Owner(instance, backward)
    part = owner.plan.functions[function]
    exact, plain = _exact(owner, True), _exact(owner, False)
    module = module_of(part.kernel_func(part.kernels[position])[0])
    io = owner.plan.instance.dtype
    wide = {a.name: limit_dtype(str(a.tensor.dtype), a.role, io) for a in part.args}
    for name, known in sizes.items():
        taken = arguments(module, known)
        inputs = exact.inputs(function, taken, known, seed)
        outputs = [a for a in taken if a.output]
        rounded = plain.kernel(function, position, inputs, known)
        references: Mapping[str, Array]
        if exact.float64:
            references = exact.kernel(function, position, inputs, known)
            limits = {a.name: limit_for(rounded[a.name], references[a.name], wide[a.name]) for a in outputs}
        else:
            references = {a.name: rounded[a.name].astype(np.float64) for a in outputs}
            limits = {a.name: limit_around(rounded[a.name], wide[a.name]) for a in outputs}
        kept = {a.name: references[a.name].astype(np.float64) for a in outputs}
        Case(taken, inputs, kept, limits, known).save(Path(folder) / name)


def prepare_all(
    instance: str,
    backward: bool,
    function: str,
    positions: list[int],
    folders: list[str],
    sizes: dict[str, dict[str, int]],
    seed: int,
) -> list[str | None]:
    """`prepare` several kernels of a function, each into a folder of its own, with the values of the function computed once.

    What was wrong with each of them; None: nothing.
    """
    found: list[str | None] = []
    for position, folder in zip(positions, folders, strict=True):
        try:
            prepare(instance, backward, function, position, sizes, seed, folder)
        except Exception:  # the others have references all the same
            found.append(traceback.format_exc())
        else:
            found.append(None)
    return found


def limit_dtype(dtype: str, role: str, io: str) -> str:
    """The dtype whose last place the limit of an argument counts in.

    What is passed on in float32 inside an operator on half precision is made from operands in half precision, and read as such.
    """
    passed = role in PASSED_ON and "float" in dtype
    return io if passed and dtype_of(io).itemsize < dtype_of(dtype).itemsize else dtype
