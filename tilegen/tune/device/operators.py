"""An operator being tuned: its kernels at definite sizes, and what its stage on the device is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilegen.tune.builder import evaluate

# isort: split
from tilegen.build.scheduled import record_key
from tilegen.build.target import BuildTarget
from tilegen.errors import ScheduleError
from tilegen.mechanisms import Instance, is_packed
from tilegen.plan.cost import kernel_cost, sources
from tilegen.plan.gpu.retrace import Retrace
from tilegen.plan.plan import FunctionPlan
from tilegen.schedules.registry import device_rule_for
from tilegen.tune.device.build import Asked, Owner, target_text, written
from tilegen.tune.device.space import DecisionSpace
from tilegen.tune.gate import dtype_of
from tilegen.tune.records import RecordKey

CHECKED, RAGGED = {"B": 1, "T": 320, "H": 2}, {"B": 3, "T": 37, "H": 5}
"""Sizes at which candidates are compared with a float64 reference: many tiles, and no multiple of any tile."""

OTHERS = 96, 7
"""Sizes of another name there."""

TIMES, BATCHES = 4, 2
"""How many times the representative sizes of an operator a GPU is given: of its sequence, and of what is independent."""

STEP = "step"


def tuned_sizes(instance: Instance, given: Mapping[str, int], step: bool) -> dict[str, int]:
    """Sizes to measure at: the given ones; else the operator's representative ones, made large enough to fill a GPU.

    A decoding step has one position and many sequences.
    """
    usual = instance.mechanism.representative
    found = {}
    for name in instance.symbolic:
        larger = {"T": TIMES, "B": BATCHES, "H": BATCHES, "R": TIMES * BATCHES}.get(name, 1)
        found[name] = given.get(name, usual[name] * larger)
    if step:
        found |= {"T": 1, "B": given.get("B", 64)}
    return with_rows(instance, found) | {name: given[name] for name in found if name in given}


def with_rows(instance: Instance, sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` with those that count the rows of all sequences together following from B and T."""
    usual = instance.mechanism.representative
    rows = usual.get("B", 0) * usual.get("T", 0)
    own = {name for name in sizes if rows and name not in ("B", "T") and usual[name] == rows}
    return dict(sizes) | dict.fromkeys(own, sizes["B"] * sizes["T"] if own else 0)


@dataclass(frozen=True)
class Kernel:
    """One kernel to search.

    Parameters
    ----------
    function, position : where it is in the operator's plan.
    shown : the function as people call it: a step's own is "forward".
    names : by argument its name on the stage.
    written : what it writes; scratch : what it leaves behind for itself or a later kernel, not all of which it may write.
    traffic, flops : bytes that it moves at least, and operations, at the tuned sizes; no operations: not known.
    code : sixteen hexadecimal digits that change with what the kernel computes.
    """

    key: RecordKey
    function: str
    position: int
    shown: str
    names: dict[str, str]
    written: list[str]
    scratch: list[str]
    traffic: int
    flops: float | None
    space: DecisionSpace
    code: str

    @property
    def name(self) -> str:
        """ "op function.kernel", for people."""
        return f"{self.key.op} {self.shown}.{self.key.kernel}"


class Operator:
    """An instance with the plan of its functions.

    Parameters
    ----------
    instance : for a step the step's own instance.
    given : sizes by name that replace the usual ones.
    step : whether only the forward at one position is meant.

    Raises
    ------
    TilegenError
        When it cannot be planned.
    """

    def __init__(self, instance: Instance, target: BuildTarget, given: Mapping[str, int], *, step: bool = False) -> None:
        target.check(instance.dtype)
        if is_packed(instance.config):
            raise ScheduleError(
                f"{instance.mechanism.name} with packed sequences is not tuned: its kernels use the rules' defaults; tune it without packed"
            )
        self.instance, self.target, self.step = instance, target, step
        self.owner = Owner(instance.key, not step)
        self.sizes = tuned_sizes(instance, given, step)
        self.text = target_text(target)
        self.functions = self.owner.functions(target.machine)
        self.places = [(name, i) for name, function in self.functions.items() for i in range(len(function.kernels))]

    @property
    def name(self) -> str:
        """The operator, for people."""
        return f"{self.instance.mechanism.name} {STEP if self.step else ''}".strip()

    def checks(self) -> dict[str, dict[str, int]]:
        """Sizes of the cases, by name."""
        chosen = {"even": (CHECKED, OTHERS[0]), "ragged": (RAGGED, OTHERS[1])}
        found = {
            name: with_rows(self.instance, {size: sizes.get(size, other) for size in self.instance.symbolic})
            for name, (sizes, other) in chosen.items()
        }
        if self.step:
            found = {name: sizes | {"T": 1} for name, sizes in found.items()}
        return found

    def job(self, function: str, position: int) -> dict[str, Any]:
        """What says to a building process which kernel is meant."""
        owner = self.owner
        return {"instance": owner.instance, "backward": owner.backward, "function": function, "position": position}

    def kernel(self, function: str, position: int) -> Kernel | None:
        """A kernel as something to search; None when its rule has nothing to decide."""
        part = self.functions[function]
        kernel = part.kernels[position]
        rule = device_rule_for(kernel, self.target.kind)
        asked = Asked(())
        rule.decide(kernel, self.target.machine, asked)
        space = DecisionSpace(asked.names, asked.categories)
        if space.total == 1:
            return None
        func = written(part, position, self.instance.dtype, Asked(()), self.target)
        scratch = {t for t in (_left(kernel), getattr(kernel, "partial", None)) if t is not None}
        writes = {*kernel.writes()} - scratch
        loads = kernel.loads if isinstance(kernel, Retrace) else sources(kernel, part.in_memory())[0]
        traffic = sum(self._bytes(tensor) for tensor in {*loads, *writes, *scratch})
        walks = [kernel.there, kernel.back] if isinstance(kernel, Retrace) else [kernel]
        costs = [kernel_cost(walk, part.in_memory()) for walk in walks]
        nbytes = sum(cost.bytes for cost in costs)
        return Kernel(
            key=record_key(self.instance, function, kernel.name, rule, self.target),
            function=function,
            position=position,
            shown=STEP if self.step else function,
            names=stage_names(function, part),
            written=[arg.name for arg in part.args if arg.tensor in writes],
            scratch=[arg.name for arg in part.args if arg.tensor in scratch],
            traffic=traffic,
            flops=sum(cost.flops for cost in costs) * traffic / nbytes if nbytes else None,
            space=space,
            code=hashlib.sha256(func.script().encode()).hexdigest()[:16],
        )

    def write_stage(
        self,
        libraries: Mapping[tuple[str, int], str],
        path: Path,
        sizes: Mapping[str, int] | None = None,
        case: Path | None = None,
    ) -> None:
        """Describe the stage (see `tilegen.tune.device.memory.Stage`) with the default of every kernel.

        `sizes` : the tuned ones unless given; `case` : with references at these sizes, see `tilegen.tune.device.cases`.
        """
        sizes = sizes or self.sizes
        tensors: dict[str, Any] = {}
        for function, part in self.functions.items():
            for arg in part.args:
                name = stage_names(function, part)[arg.name]
                shape = [evaluate(dim, sizes) for dim in arg.tensor.shape]
                tensors.setdefault(name, {"dtype": str(arg.tensor.dtype), "shape": shape, "role": arg.role})
        kernels = [
            {"library": libraries[function, position], "names": stage_names(function, self.functions[function])}
            for function, position in self.places
        ]
        described = {"sizes": sizes, "dtype": self.instance.dtype, "tensors": tensors, "kernels": kernels, "case": str(case)}
        path.write_text(json.dumps(described))

    def _bytes(self, tensor: Any) -> int:
        shape = [evaluate(dim, self.sizes) for dim in tensor.shape]
        return int(np.prod(shape, dtype=np.int64)) * dtype_of(str(tensor.dtype)).itemsize


def _left(kernel: Any) -> Any:
    """Where a walk leaves its states for a later one."""
    marks = None if isinstance(kernel, Retrace) else getattr(kernel, "marks", None)
    return marks.tensor if marks is not None else None


def stage_names(function: str, part: FunctionPlan) -> dict[str, str]:
    """By argument its name on the stage, where functions share what they pass on, and keep their workspace to themselves."""
    return {arg.name: f"{function} {arg.name}" if arg.role == "workspace" else arg.name for arg in part.args}
