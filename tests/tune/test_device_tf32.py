"""Tuning of float32 operators whose products are in TF32: records and limits of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tilegen.build.scheduled import record_key
from tilegen.build.target import resolve
from tilegen.cli.instance import instance
from tilegen.tune.case import Case
from tilegen.tune.device import cases
from tilegen.tune.device.build import Asked, Owner, target_of, target_text, written
from tilegen.tune.device.measure import unlike
from tilegen.tune.device.operators import Operator
from tilegen.tune.gate import complaint

GIVEN = ["D=16", "E=16", "chunk=16"]
ROUNDED, USUAL = resolve("sm_90", tf32=True), resolve("sm_90")


def test_kernels_and_records_are_others() -> None:
    for dtype, expected in (("float32", "tf32"), ("bfloat16", "bfloat16")):
        made = Operator(instance("linear_attention", GIVEN, dtype), target_of(target_text(ROUNDED)), {})
        assert made.sketch().dtype == expected
        assert {kernel.key.dtype for kernel in made.sketch().kernels.values()} == {expected}
    owner = Owner(instance("linear_attention", GIVEN).key, True)
    texts = [
        written(owner.functions(target.machine)["forward"], 0, "float32", Asked(()), target).script()
        for target in (ROUNDED, USUAL)
    ]
    assert ["tilegen_mma_tf32" in text for text in texts] == [True, False]
    rule = type("Rule", (), {"name": "cuda.tile", "version": 1})
    keys = {record_key(instance("linear_attention", GIVEN), "forward", "tile0", rule, target) for target in (ROUNDED, USUAL)}
    assert len(keys) == 2


def test_a_step_is_planned_with_them() -> None:
    step = instance("linear_attention", GIVEN).step_instance()
    assert step is not None
    (kernel,) = Owner(step.key, False).functions(ROUNDED.machine)["forward"].kernels
    assert getattr(kernel, "tf32", False)


def test_limits_allow_the_rounding_of_operands_and_no_more(tmp_path: Path) -> None:
    made = Operator(instance("linear_attention", GIVEN), ROUNDED, {})
    sizes = {"B": 1, "T": 20, "H": 1}
    sketch = made.sketch()
    cases.prepare(**sketch.owner(), sizes={"small": sizes}, seed=0, folder=str(tmp_path), dtype=sketch.dtype)
    case = Case.load(tmp_path / "small")
    noise = np.random.default_rng(0)
    for name, reference in case.references.items():
        found = reference * (1 + noise.uniform(-(2.0**-11), 2.0**-11, reference.shape))
        assert complaint(name, found, reference, case.limits[name]) is None
        assert complaint(name, reference * 1.02, reference, case.limits[name])


def test_candidates_may_round_otherwise_than_the_default() -> None:
    expected = np.linspace(-1, 1, 64)
    assert unlike(expected + 2.0**-10, expected, "float32", "tf32") is None
    assert unlike(expected + 2.0**-10, expected, "float32", "float32")
    assert unlike(expected + 2.0**-4, expected, "float32", "tf32")
