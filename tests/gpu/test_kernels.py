"""What `.ci/sanitize` looks at: every operator, and every function of it runs."""

from __future__ import annotations

import torch

from tests.gpu.kernels import CASES, run
from tilegen import mechanisms


def test_every_operator_is_looked_at() -> None:
    found = [mechanisms.get(name) for name in mechanisms.names()]
    built_in = {one.name for one in found if str(one.expression).startswith("tilegen.ops.") and not one.host}
    assert {case.op for case in CASES.values()} == built_in


def test_a_run_calls_every_function() -> None:
    found = run(CASES["extract"], torch.device("cpu"))
    assert {place["function"] for place in found.bundle.manifest.provenance} == {"forward", "backward"}
