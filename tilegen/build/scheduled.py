"""A planned function scheduled for a target: recorded decisions where there are any, the rules' defaults elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from dataclasses import dataclass
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
from tvm import s_tir  # noqa: E402

from tilegen.build.target import BuildTarget  # noqa: E402
from tilegen.errors import ScheduleError  # noqa: E402
from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan import fastmath  # noqa: E402
from tilegen.plan.plan import FunctionPlan  # noqa: E402
from tilegen.schedules.registry import PLAIN, by_name, device_rule_for, rule_for  # noqa: E402
from tilegen.schedules.rule import Fixed, View  # noqa: E402
from tilegen.tune.records import Record, RecordKey, lookup  # noqa: E402

LOG = logging.getLogger("tilegen")

MATH = {"llvm": fastmath.vectorisable}


@dataclass(frozen=True)
class Scheduled:
    """A scheduled module, its trace (None for GPUs, where decisions say all), and where each kernel's decisions came from."""

    mod: tvm.IRModule
    trace: Any
    provenance: list[dict[str, Any]]


def products_dtype(instance: Instance, target: BuildTarget) -> str:
    """The dtype of an instance, "tf32" where that is what its products of float32 tensors are in."""
    rounded = target.kind == "cuda" and target.machine.tf32 and instance.dtype == "float32"
    return "tf32" if rounded else instance.dtype


def record_key(instance: Instance, function: str, kernel: str, rule: Any, target: BuildTarget) -> RecordKey:
    """The key under which the decisions for one kernel are recorded; products in TF32 count as a dtype of their own."""
    return RecordKey(
        op=instance.mechanism.name,
        config=json.loads(json.dumps(dataclasses.asdict(instance.config))),
        static=dict(instance.static),
        dtype=products_dtype(instance, target),
        function=function,
        kernel=kernel,
        rule=rule.name,
        rule_version=rule.version,
        host=target.device,
        arch=target.description["arch"] if target.kind == "cuda" else "",
    )


def schedule(instance: Instance, function: FunctionPlan, target: BuildTarget) -> Scheduled:
    """Schedule every kernel of `function`."""
    if target.kind == "cuda":
        if instance.mechanism.host:
            name = instance.mechanism.name
            raise ScheduleError(
                f"{name} is for CPUs, the target is {target.device}; call the operator that uses it, which has a form for GPUs"
            )
        return _launched(instance, function, target)
    sch = _fresh(function, target)
    provenance: list[dict[str, Any]] = []
    for kernel in function.kernels:
        view = View(sch, kernel.name, target.machine)
        rule = rule_for(view, target.kind)
        record = lookup(record_key(instance, function.name, kernel.name, rule, target))
        decide = Fixed(record.decisions if record else ())
        source = record.source if record else "default"
        # What was tried in vain leaves its marks in the schedule: each further attempt starts from a fresh one.
        try:
            rule.apply(view, decide)
        except Exception as error:  # a stale record may also make one of TVM's primitives raise
            if record:
                _unfit(record, function, kernel, error)
            sch = _again(function, kernel, target, provenance)
            rule, decide, source = _default_or_plain(sch, kernel, rule if record else PLAIN, target, error), Fixed(), "default"
            if rule is not PLAIN:
                sch = _again(function, kernel, target, provenance)
                rule.apply(View(sch, kernel.name, target.machine), decide)
            record = None
        provenance.append(_made(function, kernel, rule, source, record, decide))
    return Scheduled(sch.mod, sch.trace, provenance)


def _launched(instance: Instance, function: FunctionPlan, target: BuildTarget) -> Scheduled:
    """The function for a GPU: a rule decides the sizes of each kernel, the planner's lowering of its pattern writes it."""
    params = [(arg.name, arg.tensor) for arg in function.args]
    chosen: list[tuple[Any, dict[str, Any]]] = []
    provenance: list[dict[str, Any]] = []

    def written(kernels: list[tuple[Any, dict[str, Any]]]) -> Any:
        from tilegen.plan.gpu.func import device_func
        from tilegen.plan.gpu.math import math_of

        return device_func(params, kernels, target.machine, math_of(instance.dtype))

    for kernel in function.kernels:
        rule = device_rule_for(kernel, target.kind)
        record = lookup(record_key(instance, function.name, kernel.name, rule, target))
        decide = Fixed(record.decisions if record else ())
        source = record.source if record else "default"
        if record:
            try:
                decisions = rule.decide(kernel, target.machine, decide)
                require_names(record, list(decide.made))
                written([(kernel, decisions)])
            except Exception as error:  # a stale record may ask for what the lowering refuses
                _unfit(record, function, kernel, error)
                record, source, decide = None, "default", Fixed()
        if not record:
            decisions = rule.decide(kernel, target.machine, decide)
        chosen.append((kernel, decisions))
        provenance.append(_made(function, kernel, rule, source, record, decide))
        if target.machine.tf32 and hasattr(kernel, "tf32"):
            provenance[-1]["products"] = "tf32" if kernel.tf32 else instance.dtype
    return Scheduled(tvm.IRModule({"main": written(chosen)}), None, provenance)


def _made(function: FunctionPlan, kernel: Any, rule: Any, source: str, record: Record | None, decide: Fixed) -> dict[str, Any]:
    """Where the decisions for a kernel came from, as the manifest says it."""
    return {
        "function": function.name,
        "kernel": kernel.name,
        "rule": rule.name,
        "source": source,
        "record": record.key.id if record else None,
        "device": record.key.host if record else None,
        "decisions": dict(decide.made),
    }


def require_names(record: Record, asked: list[str]) -> None:
    """Refuse the record of a rule that asked for other decisions, or in another order."""
    recorded = [str(name) for name, _ in record.trace]
    if recorded != asked:
        raise ScheduleError(f"it decides {', '.join(recorded)}, the rule asks for {', '.join(asked)}; tune this kernel again")


def _unfit(record: Record, function: FunctionPlan, kernel: Any, error: Exception) -> None:
    said = f"tuning record {record.key.id} does not fit {function.name}.{kernel.name} ({error}); its default is used"
    if record.source == "nearest":  # what another device can choose need not be among what this one can
        LOG.info(said)
    else:
        warnings.warn(said, stacklevel=3)


def _default_or_plain(sch: Any, kernel: Any, rule: Any, target: BuildTarget, error: Exception) -> Any:
    """`rule` if its default fits the kernel, tried on the scratch schedule `sch`; else `PLAIN`: slow, never broken."""
    try:
        rule.apply(View(sch, kernel.name, target.machine), Fixed())
    except Exception as again:
        error = again
        rule = PLAIN
    if rule is PLAIN:
        LOG.warning("kernel %s runs as it was planned, unscheduled: %s", kernel.name, str(error).strip().splitlines()[-1])
    return rule


def _again(function: FunctionPlan, stop: Any, target: BuildTarget, done: list[dict[str, Any]]) -> Any:
    """A fresh schedule with the kernels before `stop` scheduled as they were."""
    fresh = _fresh(function, target)
    for kernel, made in zip(function.kernels, done, strict=False):
        if kernel is stop:
            break
        by_name(made["rule"]).apply(View(fresh, kernel.name, target.machine), Fixed(list(made["decisions"].values())))
    return fresh


def _fresh(function: FunctionPlan, target: BuildTarget) -> Any:
    """A schedule of the function as planned.  Emitted anew each time: a schedule changes parts of the module it was made of."""
    return s_tir.Schedule(tvm.IRModule({"main": function.prim_func(MATH.get(target.kind))}), debug_mask=0)
