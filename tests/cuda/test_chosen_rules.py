"""Which rules run the shapes that `.ci/gpu` times: none falls to a generic one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tilegen.build import library
from tilegen.build.target import resolve
from tilegen.cli.instance import instance

TIMED = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "gpu"))["SHAPES"]
GENERIC = {"cuda.walk_plain"}
SPECIAL = {"cuda.contraction", "cuda.convolution", "cuda.retrace", "cuda.tile", "cuda.walk", "cuda.walk_strip"}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("op", "options"), sorted({(op, tuple(options)) for op, options, _ in TIMED}), ids=str)
def test_timed_shapes_have_rules_of_their_own(op: str, options: tuple[str, ...], arch: str) -> None:
    made = library.scheduled_parts(instance(op, list(options), "bfloat16"), ("forward", "backward"), resolve(arch)).provenance
    for function in ("forward", "backward"):
        rules = {kernel["rule"] for kernel in made if kernel["function"] == function}
        assert rules & SPECIAL, f"{function} of {op} is {rules}"
        assert not rules & GENERIC, f"{function} of {op} is {rules}"
