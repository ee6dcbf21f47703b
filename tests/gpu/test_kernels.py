"""What `.ci/sanitize` looks at: every operator, and every function of it runs."""

from __future__ import annotations

import torch

from tests.gpu.kernels import CASES, run
from tilegen import mechanisms


def test_every_operator_is_looked_at() -> None:
    built_in = {name for name in mechanisms.names() if str(mechanisms.get(name).expression).startswith("tilegen.ops.")}
    assert {case.op for case in CASES.values()} == built_in


def test_a_run_calls_every_function() -> None:
    found = run(CASES["extract"], torch.device("cpu"))
    assert {place["function"] for place in found.bundle.manifest.provenance} == {"forward", "backward"}
