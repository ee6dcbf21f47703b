"""Lists too long for a block, as a wide window has, are walked in pieces: values and gradients as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.emulator.functions import EmulatedInstance
from tilegen.bench.check import verdict
from tilegen.build.library import functions_of, scheduled_parts
from tilegen.build.target import resolve
from tilegen.mechanisms import Instance
from tilegen.ops.local_attention import MECHANISM, Config, reference
from tilegen.plan import pieces


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("bfloat16", {"window": 48}), ("float32", {"window": 40, "causal": False, "kind": "relu2"})],
    ids=["bfloat16-causal-softmax", "float32-relu2"],
)
def test_a_walked_list_gives_what_the_whole_one_does(
    dtype: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "LONGEST", 30)
    monkeypatch.setattr(pieces, "PIECE", 16)
    config, io = Config(chunk=16, **options), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(1, 110, 1, 16, generator=generator).to(io) for name in "qkv"}
    made = EmulatedInstance(Instance(MECHANISM, config, {"D": 16, "E": 16}, dtype), ("forward", "backward"))
    assert made.source.count("__global__") > 3
    forward = made.run("forward", given, ("forward", "reverse"))
    seed = torch.randn(1, 110, 1, 16, generator=generator).to(io)
    back = made.run("backward", given | forward | {"grad_o": seed}, ("forward", "reverse"))
    found = [forward["o"], *[back[f"grad_{name}"] for name in "qkv"]]
    expected = []
    for wide in (torch.float32, torch.float64):
        leaves = [x.to(wide).requires_grad_() for x in given.values()]
        (o,) = reference.forward(config, *leaves)
        expected.append([o, *torch.autograd.grad(o, leaves, seed.to(wide))])
    verdicts = [verdict(name, *row) for name, *row in zip(("o", *"qkv"), found, *expected, strict=True)]
    assert not [one for one in verdicts if not one.passed]


@pytest.mark.parametrize("window", [1000, 2048])
def test_wide_windows_fit_a_block(window: int) -> None:
    parts = scheduled_parts(Instance(MECHANISM, Config(window), {"D": 64, "E": 64}, "float32"), ("forward",), resolve("sm_80"))
    assert len(parts.provenance) == 3  # the maxima, the sums, and the results


def test_short_lists_stay_whole() -> None:
    instance = Instance(MECHANISM, Config(128), {"D": 64, "E": 64}, "bfloat16")
    (kernel,) = functions_of(instance, ("forward",), resolve("sm_90").machine)["forward"][1].kernels
    assert kernel.walked is None
