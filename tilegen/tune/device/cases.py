"""What runs in building processes too: inputs, float64 references and limits of an operator, at sizes that a CPU computes in a second.

A kernel is judged by what the operator gives with it in its place: what kernels pass on to each other has no definition of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tilegen.tune.builder import arguments

# isort: split
from tilegen.tune.case import Argument, Case, normal_inputs
from tilegen.tune.device.build import Owner, registered
from tilegen.tune.gate import TF32, Array, limit_around, limit_for, loosened
from tilegen.tune.planned import Exact, module_of

GIVEN = ("input", "grad_output")
"""Roles of what an operator is given."""

MADE = ("output", "grad_input")
"""Roles of what it gives."""


def prepare(
    instance: str, module: str, backward: bool, sizes: dict[str, dict[str, int]], seed: int, folder: str, dtype: str = ""
) -> None:
    """Write a case for each of `sizes` into ``folder/<name>``.

    Limits come from the plan itself unscheduled: its error, in the operator's dtype, against the same in float64; "tf32" as the
    `dtype` loosens them.
    """
    owner = Owner(registered(instance, module), backward)
    plain, exact = Exact(owner.plan, False, hasty=True), Exact(owner.plan, True, hasty=True)
    for name, known in sizes.items():
        inputs, outputs = _ends(plain, known)
        values = normal_inputs(inputs, known, seed)
        rounded = _through(plain, values, known)
        references: Mapping[str, Array]
        if exact.float64:
            references = _through(exact, values, known)
            limits = {a.name: limit_for(rounded[a.name], references[a.name], a.dtype) for a in outputs}
        else:
            references = rounded
            limits = {a.name: limit_around(rounded[a.name], a.dtype) for a in outputs}
        if dtype == TF32:
            limits = {name: loosened(limit) for name, limit in limits.items()}
        kept = {a.name: references[a.name].astype(np.float64) for a in outputs}
        Case([*inputs, *outputs], values, kept, limits, known).save(Path(folder) / name)


def _ends(exact: Exact, sizes: Mapping[str, int]) -> tuple[list[Argument], list[Argument]]:
    """What the functions of a plan are given and what they give, without what they pass on."""
    found: dict[str, Argument] = {}
    for function in exact.functions.values():
        roles = {arg.name: arg.role for arg in function.args}
        for argument in arguments(module_of(function.prim_func()), sizes):
            if roles[argument.name] in (*GIVEN, *MADE):
                made = roles[argument.name] in MADE
                found.setdefault(argument.name, Argument(argument.name, argument.shape, argument.dtype, made))
    return [a for a in found.values() if not a.output], [a for a in found.values() if a.output]


def _through(exact: Exact, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """All that the functions write, one after the other, each given what those before it left."""
    values = dict(inputs)
    for function in exact.functions:
        values |= exact.run(function, values, sizes)
    return values
