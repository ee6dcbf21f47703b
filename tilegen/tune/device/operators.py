"""An operator being tuned: its kernels at definite sizes, and what its stage on the device is made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilegen.tune.builder import evaluate

# isort: split
from tilegen.build.scheduled import products_dtype, record_key
from tilegen.build.target import BuildTarget
from tilegen.errors import ScheduleError, TilegenError
from tilegen.mechanisms import Instance, is_packed
from tilegen.plan.cost import kernel_cost, sources
from tilegen.plan.gpu.retrace import Retrace
from tilegen.plan.plan import FunctionPlan
from tilegen.schedules.registry import device_rule_for
from tilegen.tune.device.build import Asked, Owner, registered, target_of, target_text, written
from tilegen.tune.device.space import DecisionSpace
from tilegen.tune.gate import dtype_of
from tilegen.tune.packed import ROWS, SEQUENCES, sizes_of
from tilegen.tune.records import RecordKey

CHECKED, RAGGED = {"B": 2, "T": 320, "H": 2}, {"B": 3, "T": 37, "H": 5}
"""Sizes at which candidates are compared with a float64 reference: many tiles, and no multiple of any tile."""

OTHERS = 96, 7
"""Sizes of another name there."""

TIMES, BATCHES = 4, 2
"""How many times the representative sizes of an operator a GPU is given: of its sequence, and of what is independent."""

STEP = "step"
TUNED = "tuned"


def tuned_sizes(instance: Instance, given: Mapping[str, int], step: bool) -> dict[str, int]:
    """Sizes to measure at: the given ones; else the operator's representative ones, made large enough to fill a GPU.

    A decoding step has one position and many sequences.
    """
    usual = instance.mechanism.representative
    if is_packed(instance.config):
        sequences = given.get(SEQUENCES, BATCHES * usual["B"])
        many = {SEQUENCES: sequences, ROWS: sequences * TIMES * usual["T"], "H": BATCHES * usual.get("H", 1)}
        return sizes_of(instance, {name: given.get(name, many.get(name, 0)) for name in instance.symbolic}, whole=True)
    found = {}
    for name in instance.symbolic:
        larger = {"T": TIMES, "B": BATCHES, "H": BATCHES, "R": TIMES * BATCHES}.get(name, 1)
        found[name] = given.get(name, usual[name] * larger)
    if step:
        found |= {"T": 1, "B": given.get("B", 64)}
    return with_rows(instance, found) | {name: given[name] for name in found if name in given and not (step and name == "T")}


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

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        space = {"names": self.space.names, "categories": self.space.categories}
        return fields | {"key": dataclasses.asdict(self.key), "space": space}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Kernel:
        """The kernel that `to_json` described."""
        return cls(**{**fields, "key": RecordKey(**fields["key"]), "space": DecisionSpace(**fields["space"])})


@dataclass(frozen=True)
class Request:
    """An operator to tune.

    Parameters
    ----------
    instance : for a step the step's own instance.
    given : sizes by name that replace the usual ones.
    step : whether only the forward at one position is meant.
    """

    instance: Instance
    given: Mapping[str, int]
    step: bool = False

    @property
    def name(self) -> str:
        """The operator, for people."""
        return f"{self.instance.mechanism.name} {STEP if self.step else ''}".strip()

    @property
    def module(self) -> str:
        """The module that makes the operator known to a new process."""
        expression = self.instance.mechanism.expression
        return expression.partition(":")[0] if isinstance(expression, str) else str(expression.__module__)


def describe(instance: str, module: str, given: dict[str, int], step: bool, target: dict[str, Any]) -> dict[str, Any]:
    """What a process that plans nothing itself must know of an operator (see `Sketch`); called in a building process.

    ``{"error": message}`` when the operator cannot be planned.
    """
    try:
        if module == "__main__":
            raise ScheduleError(
                "it is defined in the program that was started, which tuning processes do not import; move it to a module of its own"
            )
        found = Instance.from_key(registered(instance, module))
        return Operator(found, target_of(target), given, step=step, module=module).describe()
    except TilegenError as error:
        return {"error": str(error)}


class Operator:
    """An instance with the plan of its functions.

    Parameters
    ----------
    instance, given, step, module : see `Request`.

    Raises
    ------
    TilegenError
        When it cannot be planned.
    """

    def __init__(
        self, instance: Instance, target: BuildTarget, given: Mapping[str, int], *, step: bool = False, module: str = ""
    ) -> None:
        target.check(instance.dtype)
        self.instance, self.target, self.step, self.module = instance, target, step, module
        self.owner = Owner(instance.key, not step)
        self.sizes = tuned_sizes(instance, given, step)
        self.functions = self.owner.functions(target.machine)
        self.places = [(name, i) for name, function in self.functions.items() for i in range(len(function.kernels))]

    def sketch(self) -> Sketch:
        """What is known of it without its plan."""
        return Sketch(self.describe(), self.target)

    def describe(self) -> dict[str, Any]:
        """What `Sketch` is made of, as JSON values."""
        sizes = {TUNED: self.sizes, **self.checks()}
        kernels = [self.kernel(*place) for place in self.places]
        return {
            "name": Request(self.instance, {}, self.step).name,
            "dtype": products_dtype(self.instance, self.target),
            "module": self.module,
            "instance": self.owner.instance,
            "backward": self.owner.backward,
            "sizes": sizes,
            "places": self.places,
            "called": [self.functions[function].kernels[i].name for function, i in self.places],
            "tensors": {label: self._tensors(known) for label, known in sizes.items()},
            "names": [stage_names(function, self.functions[function]) for function, _ in self.places],
            "kernels": [kernel and kernel.to_json() for kernel in kernels],
        }

    def _tensors(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Every argument by its name on the stage."""
        tensors: dict[str, Any] = {}
        for function, part in self.functions.items():
            names = stage_names(function, part)
            for arg in part.args:
                shape = [evaluate(dim, sizes) for dim in arg.tensor.shape]
                tensors.setdefault(names[arg.name], {"dtype": str(arg.tensor.dtype), "shape": shape, "role": arg.role})
        return tensors

    def checks(self) -> dict[str, dict[str, int]]:
        """Sizes of the cases, by name."""
        chosen = {"even": (CHECKED, OTHERS[0]), "ragged": (RAGGED, OTHERS[1])}
        found = {name: self._filled(*sizes) for name, sizes in chosen.items()}
        if self.step:
            found = {name: sizes | {"T": 1} for name, sizes in found.items()}
        return found

    def _filled(self, sizes: Mapping[str, int], other: int) -> dict[str, int]:
        """Sizes of a case for every symbolic name; packed sequences are one more, since one of them is empty."""
        known = {name: sizes.get(name, other) for name in self.instance.symbolic}
        if is_packed(self.instance.config):
            return sizes_of(self.instance, known | {SEQUENCES: sizes["B"] + 1}, whole=False)
        return with_rows(self.instance, known)

    def kernel(self, function: str, position: int) -> Kernel | None:
        """A kernel as something to search; None when its rule has nothing to decide, or its tiles have no room (`plan.gpu.room`)."""
        part = self.functions[function]
        kernel = part.kernels[position]
        if getattr(kernel, "room", None) is not None:  # it runs in one way, whatever is decided
            return None
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

    def _bytes(self, tensor: Any) -> int:
        shape = [evaluate(dim, self.sizes) for dim in tensor.shape]
        return int(np.prod(shape, dtype=np.int64)) * dtype_of(str(tensor.dtype)).itemsize


class Sketch:
    """An operator as its description in JSON says: its kernels, and what lies on its stage.

    Attributes
    ----------
    dtype : the operator's, "tf32" where its products are.
    places, called : function and position of each kernel, and its name in the plan.
    sizes : those to measure at.
    """

    def __init__(self, described: Mapping[str, Any], target: BuildTarget) -> None:
        self._described, self.target, self.text = described, target, target_text(target)
        self.name: str = described["name"]
        self.dtype: str = described["dtype"]
        self.sizes: dict[str, int] = described["sizes"][TUNED]
        self.places: list[tuple[str, int]] = [(function, int(position)) for function, position in described["places"]]
        self.called = dict(zip(self.places, described["called"], strict=True))
        self.kernels = {
            place: Kernel.from_json(kernel) for place, kernel in zip(self.places, described["kernels"], strict=True) if kernel
        }

    def checks(self) -> dict[str, dict[str, int]]:
        """Sizes of the cases, by name."""
        return {name: sizes for name, sizes in self._described["sizes"].items() if name != TUNED}

    def owner(self) -> dict[str, Any]:
        """What says to a building process which operator is meant."""
        return {name: self._described[name] for name in ("instance", "module", "backward")}

    def job(self, function: str, position: int) -> dict[str, Any]:
        """What says to a building process which kernel is meant."""
        return self.owner() | {"function": function, "position": position}

    def write_stage(
        self, libraries: Mapping[tuple[str, int], str], path: Path, label: str = "", case: Path | None = None
    ) -> None:
        """Describe the stage (see `tilegen.tune.device.memory.Stage`) with the default of every kernel.

        `label` : the check whose sizes it has, the tuned ones unless given; `case` : with references at these sizes.
        """
        label, described = label or TUNED, self._described
        kernels = [
            {"library": libraries[place], "names": names} for place, names in zip(self.places, described["names"], strict=True)
        ]
        parts = {"sizes": described["sizes"][label], "dtype": described["dtype"], "tensors": described["tensors"][label]}
        path.write_text(json.dumps(parts | {"kernels": kernels, "case": str(case)}))


def _left(kernel: Any) -> Any:
    """Where a walk leaves its states for a later one."""
    marks = None if isinstance(kernel, Retrace) else getattr(kernel, "marks", None)
    return marks.tensor if marks is not None else None


def stage_names(function: str, part: FunctionPlan) -> dict[str, str]:
    """By argument its name on the stage, where functions share what they pass on, and keep their workspace to themselves."""
    return {arg.name: f"{function} {arg.name}" if arg.role == "workspace" else arg.name for arg in part.args}
