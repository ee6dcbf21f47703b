"""A planned function scheduled for a target: recorded decisions where there are any, the rules' defaults elsewhere."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
from tvm import s_tir  # noqa: E402

from tilegen.build.target import BuildTarget  # noqa: E402
from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan import fastmath  # noqa: E402
from tilegen.plan.plan import FunctionPlan  # noqa: E402
from tilegen.schedules.registry import rule_for  # noqa: E402
from tilegen.schedules.rule import Fixed, View  # noqa: E402
from tilegen.tune.records import RecordKey, lookup  # noqa: E402

MATH = {"llvm": fastmath.vectorisable}


@dataclass(frozen=True)
class Scheduled:
    """A scheduled module, its trace, and where each kernel's decisions came from."""

    mod: tvm.IRModule
    trace: Any
    provenance: list[dict[str, Any]]


def record_key(instance: Instance, function: str, kernel: str, rule: Any, target: BuildTarget) -> RecordKey:
    """The key under which the decisions for one kernel are recorded."""
    return RecordKey(
        op=instance.mechanism.name,
        config=json.loads(json.dumps(dataclasses.asdict(instance.config))),
        static=dict(instance.static),
        dtype=instance.dtype,
        function=function,
        kernel=kernel,
        rule=rule.name,
        rule_version=rule.version,
        host=target.device,
    )


def schedule(instance: Instance, function: FunctionPlan, target: BuildTarget) -> Scheduled:
    """Schedule every kernel of `function`."""
    mod = tvm.IRModule({"main": function.prim_func(MATH.get(target.kind))})
    sch = s_tir.Schedule(mod, debug_mask=0)
    provenance: list[dict[str, Any]] = []
    for kernel in function.kernels:
        view = View(sch, kernel.name, target.machine)
        rule = rule_for(view, target.kind)
        record = lookup(record_key(instance, function.name, kernel.name, rule, target))
        decide = Fixed(record.decisions if record else ())
        source = record.source if record else "default"
        try:
            rule.apply(view, decide)
        except Exception as error:  # a stale record may also make one of TVM's primitives raise
            if not record:
                raise
            warnings.warn(f"tuning record {record.key.id} does not fit {function.name}.{kernel.name} ({error}); its default is used", stacklevel=2)
            sch = _again(sch, mod, function, kernel, target, provenance)
            view, decide, record, source = View(sch, kernel.name, target.machine), Fixed(), None, "default"
            rule.apply(view, decide)
        provenance.append(
            {
                "function": function.name,
                "kernel": kernel.name,
                "rule": rule.name,
                "source": source,
                "record": record.key.id if record else None,
                "decisions": dict(decide.made),
            }
        )
    return Scheduled(sch.mod, sch.trace, provenance)


def _again(sch: Any, mod: tvm.IRModule, function: FunctionPlan, stop: Any, target: BuildTarget, done: list[dict[str, Any]]) -> Any:
    """A fresh schedule with the kernels before `stop` scheduled as they were: a rule that failed half-way leaves its marks."""
    fresh = s_tir.Schedule(mod, debug_mask=0)
    for kernel, made in zip(function.kernels, done, strict=False):
        if kernel is stop:
            break
        view = View(fresh, kernel.name, target.machine)
        rule_for(view, target.kind).apply(view, Fixed(list(made["decisions"].values())))
    return fresh
