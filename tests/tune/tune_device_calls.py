"""Building and measuring of a device whose times are a formula: what a search on a GPU promises is tested without one.

The name of a "cubin" is the decisions; each measurement is noted in the folder ``$MEASURED`` before it is reported.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

CRASHES, WRONG, UNFIT, TWIN = 16, 4, 1, 64
"""Values of the decision "steps" (the last: of "channels") that stand for a candidate's fate."""


def device() -> str:
    """The number of the device that this process owns."""
    return os.environ.get("TILEGEN_TUNE_DEVICE", "0")


def broken(what: str) -> bool:
    """Whether this device is the one that fails at `what`."""
    return os.environ.get("BROKEN") == f"{what} {device()}"


def setup() -> None:
    if broken("start"):
        raise RuntimeError("CUDA_ERROR_SYSTEM_NOT_READY")


def describe(**request: Any) -> dict[str, Any]:
    """The operator as it is, whose kernels decide something else; planned once for all searches of a test run."""
    from tune_device import CATEGORIES, NAMES

    known = Path(os.environ["DESCRIBED"])
    if not known.exists():
        from tilegen.tune.device import operators

        known.write_text(json.dumps(operators.describe(**request)))
    found: dict[str, Any] = json.loads(known.read_text())
    for kernel in filter(None, found["kernels"]):
        kernel["space"] = {"names": NAMES, "categories": CATEGORIES}
    return found


def build(decisions: list[int], folder: str, function: str, position: int, prune: bool = False, **_: Any) -> dict[str, Any]:
    from tune_device import CATEGORIES, NAMES

    made = [*decisions, *(c[0] for c in CATEGORIES[len(decisions) :])]
    if made[2] == UNFIT:
        return {"kind": "pruned" if prune and made[0] > 16 else "schedule", "message": "too little of everything"}
    code = [32, *made[1:]] if made[0] == TWIN else made
    library = Path(folder) / f"{function}{position}-{'-'.join(map(str, code))}.cubin"
    library.touch()
    return {"kind": "ok", "library": str(library), "names": NAMES, "decisions": made, "categories": CATEGORIES, "compiled": []}


def prepare(folder: str, sizes: dict[str, Any], **_: Any) -> None:
    for name in sizes:
        (Path(folder) / name).mkdir(parents=True)


def check(library: str, number: int, checked: list[str]) -> dict[str, Any]:
    described = [json.loads(Path(path).read_text()) for path in checked]
    assert described and all(Path(each["case"]).is_dir() and number < len(each["kernels"]) for each in described)
    if Path(library).stem.partition("-")[2] == os.environ.get("REFUSED"):
        return {"kind": "wrong", "message": "y: largest error 3 at [0, 0, 1]"}
    return {"kind": "ok"}


def seconds(decisions: list[int]) -> float:
    channels, width, steps, groups, ahead = decisions
    cost = abs(math.log2(channels) - 4) + abs(width - 2) + abs(math.log2(steps) - 3) + abs(math.log2(groups) - 4) + abs(ahead - 2)
    return 1e-4 * (1 + 0.2 * cost)


def measure(library: str, stage: str, names: dict[str, str], written: list[str], checked: list[str], **_: Any) -> dict[str, Any]:
    stage_of = json.loads(Path(stage).read_text())
    assert set(names.values()) <= set(stage_of["tensors"])
    assert set(written) <= set(names)
    if checked and (found := check(library, _["number"], checked))["kind"] != "ok":
        return found
    decisions = [int(n) for n in Path(library).stem.split("-")[1:]]
    lasting = len((Path(os.environ["MEASURED"]) / "list").read_text().split()) if broken("later") else 0
    if broken("measure") or lasting > 30:
        raise RuntimeError("cuMemAlloc_v2: out of memory (2)")
    with open(Path(os.environ["MEASURED"]) / "list", "a") as file:
        file.write(f"{Path(library).stem}\n")
    time.sleep(0.005)
    if os.environ.get("ALL_WRONG") or decisions[2] == WRONG:
        return {"kind": "wrong", "message": "y: largest error 7 at [0, 0, 1]"}
    if decisions[2] == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"kind": "ok", "samples": [seconds(decisions) * (1 + 0.001 * i) for i in range(5)]}


def rank(libraries: list[str], rounds: int, **_: Any) -> list[list[float]]:
    if broken("measure") or broken("later"):
        raise RuntimeError("cuMemAlloc_v2: out of memory (2)")
    decisions = [[int(n) for n in Path(library).stem.split("-")[1:]] for library in libraries]
    return [[seconds(d) * (1 + 0.001 * i) for i in range(rounds)] for d in decisions]


def copy_bandwidth() -> float:
    return 6e11 if broken("pace") else 1e12
