"""Code for tensors of 2^31 elements and more: the same numbers, by 64-bit offsets."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda.emulator import EmulatedInstance
from tests.cuda.test_emulated_ops import CASES, Case, draw
from tilegen.build.target import resolve
from tilegen.errors import TargetError

PLACE = re.compile(r"\b(\w+)_ptr(\[| \+ )")


def offsets(source: str, names: set[str]) -> list[str]:
    """The text of every offset from one of these tensors in the kernels."""
    found = []
    for match in PLACE.finditer(source):
        if match[1] in names:
            depth, end = 1 if match[2] == "[" else 0, match.end()
            while depth >= 0 and not (match[2] == "[" and depth == 0):
                depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(source[end], 0)
                end += 1
            found.append(source[match.end() : end])
    return found


# Bounded-memory attention goes through the lowering of linear attention, in ten times the code.
@pytest.mark.parametrize("case", [case for case in CASES if case.op != "bounded_memory_attention"], ids=str)
def test_wide_offsets_give_the_same_bits(case: Case) -> None:
    instance = case.instance("bfloat16")
    specs = instance.mechanism.inputs(instance.config)
    given = {spec.name: draw(instance, case)[spec.name].to(getattr(torch, spec.concrete_dtype("bfloat16"))) for spec in specs}
    narrow, wide = (EmulatedInstance(instance, ("forward", "backward"), wide=wide) for wide in (False, True))
    made = narrow.run("forward", given)
    for name, x in wide.run("forward", given).items():
        assert torch.equal(x, made[name]), name
    gradients = {f"grad_{spec.name}": made[spec.name] for spec in instance.mechanism.outputs(instance.config)}
    expected = narrow.run("backward", given | made | gradients)
    for name, x in wide.run("backward", given | made | gradients).items():
        assert torch.equal(x, expected[name]), name
    large = {arg.name for entry in wide.entries.values() for arg in entry.args if any(isinstance(dim, str) for dim in arg.shape)}
    places = offsets(wide.source, large)
    assert places and all("int64_t" in place or place.strip("()]").isdigit() for place in places), places


def test_a_cpu_is_told_to_split_the_batch() -> None:
    with pytest.raises(TargetError, match="split the batch"):
        resolve("cpu", wide=True)
