"""What runs in building processes: one kernel of a plan with given decisions to machine code.

A process plans an operator once and keeps the plan; what it was asked for is text, since plans do not travel between processes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilegen import _tvm

_tvm.ensure()

from tvm.target import Target  # noqa: E402

from tilegen.build import compilers, cuda, nvcc, nvrtc  # noqa: E402
from tilegen.build.library import functions_of, step_function  # noqa: E402
from tilegen.build.target import BuildTarget  # noqa: E402
from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan.gpu.block import TooLarge  # noqa: E402
from tilegen.plan.gpu.func import device_func  # noqa: E402
from tilegen.plan.gpu.math import math_of  # noqa: E402
from tilegen.plan.gpu.room import roomed  # noqa: E402
from tilegen.plan.gpu.rounding import allowed  # noqa: E402
from tilegen.plan.plan import FunctionPlan, Plan, plan  # noqa: E402
from tilegen.schedules.registry import device_rule_for  # noqa: E402
from tilegen.schedules.rule import Gpu  # noqa: E402
from tilegen.tune.device.needs import beyond, hopeless, needs_of  # noqa: E402

SYMBOL = "main"


def setup() -> None:
    """Import what building needs before the first candidate's clock starts."""
    import tilegen.ops
    import tilegen.plan.gpu.lowerings  # noqa: F401


@dataclass(frozen=True)
class Owner:
    """The operator that a kernel belongs to, as text: its instance's key, and whether its plan has a backward."""

    instance: str
    backward: bool

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan as a CPU runs it too, made once in a process."""
        return _planned(self.instance, self.backward)

    def functions(self, gpu: Gpu) -> dict[str, FunctionPlan]:
        """The functions as they are built for a GPU, made once in a process."""
        return _functions(self.instance, self.backward, gpu)


def registered(instance: str, module: str) -> str:
    """`instance`, after the module that registers its operator was imported."""
    if module:
        importlib.import_module(module)
    return instance


@functools.lru_cache(maxsize=64)
def _planned(instance: str, backward: bool) -> Plan:
    return plan(Instance.from_key(instance), backward=backward)


@functools.lru_cache(maxsize=64)
def _functions(instance: str, backward: bool, gpu: Gpu) -> dict[str, FunctionPlan]:
    """As `tilegen.build.library.scheduled_parts` makes them: a record would not be found for kernels of another plan."""
    if not backward:  # a step's own
        found = {"forward": step_function(Instance.from_key(instance), gpu)}
        if gpu.tf32 and Instance.from_key(instance).dtype == "float32":
            found = {name: allowed(function, gpu) for name, function in found.items()}
    else:
        both = functions_of(Instance.from_key(instance), ("forward", "backward"), gpu)
        found = {name: function for name, (_, function) in both.items()}
    return {name: roomed(function, gpu) for name, function in found.items()}


def target_text(target: BuildTarget) -> dict[str, Any]:
    """A GPU target as JSON values."""
    return {
        "tvm": str(target.tvm),
        "machine": asdict(target.machine),
        "device": target.device,
        "description": target.description,
    }


def target_of(described: Mapping[str, Any]) -> BuildTarget:
    """The target that `target_text` described."""
    return _target(json.dumps(described))


@functools.lru_cache(maxsize=2)
def _target(text: str) -> BuildTarget:
    parts = json.loads(text)
    return BuildTarget(Target(json.loads(parts["tvm"])), Gpu(**parts["machine"]), parts["device"], parts["description"])


@dataclass
class Asked:
    """Decisions as a rule asks for them: the given ones first, then its defaults; keeps what could have been chosen."""

    given: Sequence[int]
    names: list[str] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    categories: list[list[int]] = field(default_factory=list)

    def __call__(self, name: str, candidates: Sequence[int], default: int) -> int:
        value = self.given[len(self.made)] if len(self.made) < len(self.given) else default
        if value not in candidates:
            raise ValueError(f"{name} is {value}, which is not among {list(candidates)}")
        self.names.append(name)
        self.made.append(value)
        self.categories.append([default, *(c for c in candidates if c != default)])
        return value


def build(
    instance: str,
    module: str,
    backward: bool,
    function: str,
    position: int,
    decisions: list[int],
    target: dict[str, Any],
    folder: str,
    prune: bool = False,
) -> dict[str, Any]:
    """Compile one kernel into `folder`; equal code is compiled once, whoever asks for it.

    Parameters
    ----------
    prune : do not compile what cannot be fast (`tilegen.tune.device.needs`).

    Returns
    -------
    ``{"kind": "ok", "library", "names", "decisions", "categories", "compiled"}``: the cubin, what the rule asked for and what it got,
    and the compiler's report.  Nothing was compiled with ``{"kind": "schedule", "message"}`` when the kernel cannot be written so, and
    with ``{"kind": "pruned", "message"}`` when it would not start on the device, or could not be fast.
    """
    chosen = target_of(target)
    part, asked = Owner(registered(instance, module), backward).functions(chosen.machine)[function], Asked(decisions)
    try:
        func = written(part, position, Instance.from_key(instance).dtype, asked, chosen)
    except TooLarge as error:
        return {"kind": "pruned", "message": str(error)}
    except Exception as error:  # a lowering may raise anything for decisions that it cannot follow
        return {"kind": "schedule", "message": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[-1]}"}
    text, table = cuda.kernels({SYMBOL: func.with_attr("global_symbol", SYMBOL)}, chosen)
    launches = table[SYMBOL]
    problems = [beyond(launch, chosen.machine) for launch in launches]
    if prune:
        problems += [hopeless(*each, chosen.machine) for each in zip(needs_of(func), launches, strict=True)]
    if problem := next(filter(None, problems), None):
        return {"kind": "pruned", "message": problem}
    # The code alone would not do: one kernel may be started with another number of blocks.
    name = hashlib.sha256((text + json.dumps(launches, sort_keys=True)).encode()).hexdigest()[:24]
    path = Path(folder) / f"{name}.cubin"
    if not path.exists():
        code, resources = machine_code(text, chosen.description["arch"])
        _put(path.with_suffix(".json"), json.dumps({"launches": launches, "compiled": [r.as_dict() for r in resources]}).encode())
        _put(path, code)
    compiled = json.loads(path.with_suffix(".json").read_text())["compiled"]
    return {
        "kind": "ok",
        "library": str(path),
        "names": asked.names,
        "decisions": asked.made,
        "categories": asked.categories,
        "compiled": compiled,
    }


def written(part: FunctionPlan, position: int, dtype: str, decide: Any, target: BuildTarget) -> Any:
    """The function that launches one kernel of a plan for an operator on `dtype`, with decisions asked of `decide`."""
    kernel = part.kernels[position]
    decisions = device_rule_for(kernel, target.kind).decide(kernel, target.machine, decide)
    return device_func([(a.name, a.tensor) for a in part.args], [(kernel, decisions)], target.machine, math_of(dtype))


def machine_code(text: str, arch: str) -> tuple[bytes, list[nvcc.Resources]]:
    """The cubin of kernels and what the compiler says of them: by NVRTC, which needs no processes, else by nvcc."""
    if compilers.choose("nvrtc") == "nvrtc":
        return nvrtc.compile(text, arch)
    return nvcc.cubin(text, arch)


def _put(path: Path, data: bytes) -> None:
    """Write a file at once: another process may be making the same one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
