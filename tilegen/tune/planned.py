"""The kernels of a planned instance as tuning tasks.

Inputs and references come from the plan itself in float64, unscheduled: the whole function is run once at the sizes in
question, so that a kernel in the middle gets what the kernels before it really write, and not noise in its place.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilegen.tune.builder import SYMBOL, arguments, generate, specialise

# isort: split
import tvm
from tvm import s_tir
from tvm.target import Target

from tilegen.build.scheduled import MATH, record_key
from tilegen.build.target import BuildTarget
from tilegen.mechanisms import Instance, is_packed
from tilegen.plan.emit import prim_func
from tilegen.plan.plan import FunctionPlan, Plan, plan
from tilegen.runtime.tensors import library_of
from tilegen.schedules.registry import rule_for
from tilegen.schedules.rule import Sampled, View
from tilegen.tune.case import Argument, Buffer, normal_inputs
from tilegen.tune.gate import Array, dtype_of
from tilegen.tune.packed import ROWS, SEQUENCES, sizes_of
from tilegen.tune.task import Task

FUNCTIONS = ("forward", "backward")
"""The functions that are searched; a decoding step takes microseconds whatever its tiles."""

RAGGED = (3, 37, 5, 7)
"""Sizes for the second check: odd, unequal, and no multiple of any tile."""


def tasks(
    instance: Instance, target: BuildTarget, sizes: Mapping[str, int] | None = None, functions: Sequence[str] = FUNCTIONS
) -> list[Task]:
    """The kernels of `instance` worth searching: those whose rule leaves anything to decide.

    Parameters
    ----------
    sizes : values of the symbolic sizes to measure at; the mechanism's representative ones unless given.
    functions : which of forward and backward.
    """
    mechanism = instance.mechanism
    usual = dict(mechanism.representative)
    if is_packed(instance.config):
        usual |= {SEQUENCES: usual["B"], ROWS: usual["B"] * usual["T"]}
    chosen = sizes_of(instance, {name: (sizes or {}).get(name, usual.get(name, 0)) for name in instance.symbolic}, whole=True)
    ragged = ragged_sizes(instance)
    planned = plan(instance)
    exact = Exact(planned)
    found = []
    for name in functions:
        function = planned.functions[name]
        for position, kernel in enumerate(function.kernels):
            symbolic = module_of(function.kernel_func(kernel, MATH.get(target.kind))[0])
            rule = rule_for(View(s_tir.Schedule(symbolic, debug_mask=0), kernel.name, target.machine), target.kind)
            apply = functools.partial(_apply, rule, kernel.name, target.machine)
            if not _decides(apply, symbolic):
                continue
            found.append(
                Task(
                    key=record_key(instance, name, kernel.name, rule, target),
                    mod=specialise(symbolic, chosen),
                    symbolic=symbolic,
                    rule=apply,
                    reference=functools.partial(exact.kernel, name, position) if exact.float64 else None,
                    sizes=chosen,
                    ragged=ragged,
                    inputs=functools.partial(exact.inputs, name),
                    plain=module_of(function.kernel_func(kernel, None)[0]),
                )
            )
    return found


def ragged_sizes(instance: Instance) -> dict[str, int]:
    """Sizes for the second check of each kernel; packed sequences have one row, and one row more than a few tiles."""
    if not is_packed(instance.config):
        return dict(zip(instance.mechanism.symbolic, RAGGED, strict=False))
    sequences, longest = RAGGED[0], max(instance.mechanism.lengths(instance.config))
    known = {SEQUENCES: sequences, ROWS: sequences + 2 * longest}
    return sizes_of(instance, {name: known.get(name, RAGGED[2]) for name in instance.symbolic}, whole=True)


def _apply(rule: Any, kernel: str, machine: Any, sch: s_tir.Schedule) -> None:
    rule.apply(View(sch, kernel, machine), Sampled(sch))


def _decides(apply: Callable[[s_tir.Schedule], None], mod: tvm.IRModule) -> bool:
    """Whether the rule samples at all; the draw may not fit, but then it has sampled."""
    sch = s_tir.Schedule(mod, seed=1, debug_mask=0)
    try:
        apply(sch)
    except Exception:  # a draw that does not fit raises whatever the primitive raises
        return True
    return any(len(inst.attrs[0]) > 1 for inst in sch.trace.insts if inst.kind.name == "SampleCategorical")


def module_of(function: Any) -> tvm.IRModule:
    """A function as the module that the tuner's builders take."""
    return tvm.IRModule({SYMBOL: function})


class Exact:
    """The plan of an instance in float64, unscheduled, and the values it computes.

    In half precision the roundings between stages can cut a function into other kernels than in float64.  Then there is no
    float64 twin (`float64` is False), and the values are those of the plan itself, unscheduled; so they are without `exact`.
    `hasty`: compiled in a fraction of the time, for small sizes.
    """

    def __init__(self, planned: Plan, exact: bool = True, *, hasty: bool = False) -> None:
        self._target = Target({"kind": "llvm", "opt-level": 0} if hasty else {"kind": "llvm"})
        found = twin(planned) if exact else None
        self.planned, self.functions, self.float64 = planned, found or planned.functions, found is not None
        self._compiled: dict[tuple[str, int | None, bool], Any] = {}
        self._values: dict[tuple[Any, ...], dict[str, Array]] = {}

    def inputs(self, function: str, wanted: Sequence[Argument], sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
        """Values for the inputs among `wanted`, in their dtypes: what the whole function holds in these arguments."""
        values = self.values(function, sizes, seed)
        return {a.name: values[self.meaning(a.name)].astype(dtype_of(a.dtype)) for a in wanted if not a.output}

    def kernel(
        self, function: str, position: int, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None
    ) -> dict[str, Array]:
        """The outputs of one kernel, in float64, under the names of the plan that is tuned.

        `sizes` are needed where the kernel's inputs do not tell them all.
        """
        exact = self._run(function, position, {self.meaning(name): value for name, value in inputs.items()}, sizes)
        args = self.planned.functions[function].args
        return {a.name: exact[self.meaning(a.name)] for a in args if self.meaning(a.name) in exact}

    def run(self, function: str, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """What a whole function writes, by `meaning`, given values by `meaning` (others are not looked at)."""
        return self._run(function, None, inputs, sizes)

    def meaning(self, name: str) -> str:
        """What an argument is called in the twin and here alike; its own name where there is no twin."""
        return meaning(name) if self.float64 else name

    def values(self, function: str, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
        """Every argument of a function by its `meaning`, after running the functions up to it on random inputs."""
        key = (function, *sorted(sizes.items()), seed)
        if key not in self._values:
            known = {} if function == "forward" else dict(self.values("forward", sizes, seed))
            taken = arguments(module_of(self.functions[function].prim_func()), sizes)
            fresh = {self.meaning(name): value for name, value in normal_inputs(taken, sizes, seed).items()}
            given = {name: known.get(name, value) for name, value in fresh.items()}
            if len(self._values) > 4:  # a task's two sizes, forward and backward
                self._values.clear()
            self._values[key] = given | self._run(function, None, given, sizes)
        return self._values[key]

    def _run(
        self, function: str, position: int | None, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None
    ) -> dict[str, Array]:
        part, key = self.functions[function], (function, position, sizes is None)
        if key not in self._compiled:
            kernels = part.kernels if position is None else [part.kernels[position]]
            # A kernel alone may not have an argument that tells a size; all of the function's together do.
            whole = position is None or sizes is not None
            args = part.args if whole else part.kernel_func(kernels[0])[1]
            mod = module_of(prim_func([(a.name, a.tensor) for a in args], kernels))
            self._compiled[key] = (mod, generate(mod, self._target)[SYMBOL])
        mod, compiled = self._compiled[key]
        buffers = {self.meaning(a.name): Buffer(a) for a in arguments(mod, sizes or _sizes(mod, inputs, self.meaning))}
        for name, buffer in buffers.items():
            if buffer.argument.output:
                buffer.poison(0)
            elif name in inputs:
                buffer.array[...] = inputs[name]
        compiled(*(library_of([b.array]).passed(b.array) for b in buffers.values()))  # type: ignore[union-attr]
        return {name: buffer.array for name, buffer in buffers.items() if buffer.argument.output}


def _sizes(mod: tvm.IRModule, inputs: Mapping[str, Array], meaning: Callable[[str], str]) -> dict[str, int]:
    """The symbolic sizes that the shapes of the inputs imply."""
    found = {}
    for param in mod[SYMBOL].params:
        name = meaning(str(param.name))
        if name in inputs:
            for dim, extent in zip(param.ty.shape, inputs[name].shape, strict=True):
                if hasattr(dim, "name"):
                    found[str(dim.name)] = int(extent)
    return found


def twin(planned: Plan) -> dict[str, FunctionPlan] | None:
    """The functions of a plan in float64, kernel for kernel; None when they are cut otherwise in float64."""
    instance = planned.instance
    if instance.dtype == "float64":
        return planned.functions
    other = plan(dataclasses.replace(instance, dtype="float64"), backward="backward" in planned.functions)
    for name, function in planned.functions.items():
        mine = outline(function)
        if mine != outline(other.functions[name]) or not mine[1]:
            return None
    return other.functions


def outline(function: FunctionPlan) -> Any:
    """What must agree between the plans of two dtypes; what is saved may be numbered in another order."""
    names = sorted(meaning(a.name) for a in function.args)
    return names, len(set(names)) == len(names), [(k.name, k.pattern) for k in function.kernels]


def meaning(name: str) -> str:
    """The name of an argument without the number that saved tensors and workspace have in it."""
    return re.sub(r"^(saved|workspace)_\d+_", "", name)
