"""Bundles compiled from instances."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tilegen
from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402

from tilegen.build import link, pipeline  # noqa: E402
from tilegen.build.scheduled import schedule  # noqa: E402
from tilegen.build.target import BuildTarget, resolve  # noqa: E402
from tilegen.bundle import pack  # noqa: E402
from tilegen.bundle.manifest import LIBRARY, Argument, EntryPoint, Manifest  # noqa: E402
from tilegen.errors import BuildError, PlanError  # noqa: E402
from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan.plan import FunctionPlan, plan, shape_text  # noqa: E402
from tilegen.schedules.rule import Gpu  # noqa: E402


def functions_of(instance: Instance, wanted: tuple[str, ...], gpu: Gpu | None = None) -> dict[str, tuple[Instance, FunctionPlan]]:
    """The planned functions of a bundle for a CPU or for `gpu`, by name."""
    found: dict[str, tuple[Instance, FunctionPlan]] = {}
    both = plan(instance, backward="backward" in wanted, pieces=gpu is not None).functions
    if gpu is not None:
        from tilegen.plan.gpu.divide import divided
        from tilegen.plan.gpu.partial import partial
        from tilegen.plan.gpu.retrace import retraced
        from tilegen.plan.gpu.rounding import allowed
        from tilegen.plan.gpu.spread import spread

        both = {name: spread(function) for name, function in both.items()}
        both = {name: partial(divided(function)) for name, function in retraced(both, gpu).items()}
    found |= {name: (instance, function) for name, function in both.items() if name in wanted}
    step = instance.step_instance() if "step" in wanted else None
    if step is not None:
        found["step"] = (step, step_function(step, gpu))
    if gpu is not None and gpu.tf32 and instance.dtype == "float32":
        found = {name: (owner, allowed(function, gpu)) for name, (owner, function) in found.items()}
    return found


def step_function(step: Instance, gpu: Gpu | None) -> FunctionPlan:
    """The planned function of a decoding step, the forward of `step` where T is 1."""
    function = plan(step, backward=False, pieces=gpu is not None).functions["forward"]
    kernels = [dataclasses.replace(kernel, once=True) if kernel.pattern == "walk" else kernel for kernel in function.kernels]
    return function if gpu is None else dataclasses.replace(function, kernels=kernels)


@dataclass(frozen=True)
class Parts:
    """Scheduled functions by symbol, the manifest's view of each by name, and where the decisions of each kernel came from."""

    parts: dict[str, Any]
    entries: dict[str, EntryPoint]
    provenance: list[dict[str, Any]]


def scheduled_parts(instance: Instance, functions: tuple[str, ...], target: BuildTarget) -> Parts:
    """Plan and schedule `functions` of `instance`."""
    target.check(instance.dtype)
    parts, entries, provenance = {}, {}, []
    gpu = target.machine if target.kind == "cuda" else None
    for name, (owner, function) in functions_of(instance, functions, gpu).items():
        try:
            scheduled = schedule(owner, function, target)
        except PlanError as error:
            from tilegen.plan.gpu.block import TooLarge
            from tilegen.plan.gpu.room import roomed

            if gpu is None or not isinstance(error, TooLarge):
                raise
            function = roomed(function, gpu)
            scheduled = schedule(owner, function, target)
        symbol = f"tilegen_{name}"
        parts[symbol] = scheduled.mod["main"].with_attr("global_symbol", symbol)
        entries[name] = entry(symbol, function)
        provenance += [made | {"function": name} for made in scheduled.provenance]
    return Parts(parts, entries, provenance)


def compile(
    instance: Instance,
    out: Path,
    *,
    target: str | None = None,
    functions: tuple[str, ...],
    compiler: str = "nvcc",
    wide: bool = False,
    tf32: bool = False,
) -> Path:
    """Compile `instance` into the bundle folder `out`, which must exist and be empty.

    Parameters
    ----------
    target, wide, tf32 : see `tilegen.build.target.resolve`.
    functions : which of forward, backward and step.
    compiler : "nvcc" or "nvrtc", preferred for CUDA code; see `tilegen.build.compilers`.

    Raises
    ------
    TilegenError
        Of the stage that failed: expression, autodiff, plan, schedule, target or build.
    """
    chosen = resolve(target, wide=wide, tf32=tf32)
    made = scheduled_parts(instance, functions, chosen)
    versions = {name: _tvm.installed(name) or "" for name in ("apache-tvm", "apache-tvm-ffi")}
    library = LIBRARY
    if chosen.kind == "cuda":
        from tilegen.build import compilers, cuda

        library, used = cuda.build(made, chosen, out, compilers.choose(compiler))
        versions |= used
    else:
        link.link(generate(made.parts, chosen), out / library)
    manifest = Manifest(
        op=instance.mechanism.name,
        config=dict(vars(instance.config)),
        dtype=instance.dtype,
        static=dict(instance.static),
        symbolic=instance.symbolic,
        target=chosen.description,
        functions=made.entries,
        tilegen=tilegen.__version__,
        versions=versions,
        provenance=tuple(made.provenance),
        library=library,
    )
    pack.write(out, manifest)
    return out


def entry(symbol: str, function: FunctionPlan) -> EntryPoint:
    """The manifest's view of a function."""
    args = (Argument(arg.name, arg.role, str(arg.tensor.dtype), tuple(shape_text(arg.tensor))) for arg in function.args)
    return EntryPoint(symbol, tuple(args))


def generate(parts: dict[str, Any], target: BuildTarget) -> Any:
    """Machine code for scheduled functions by symbol."""
    try:
        return pipeline.compile(tvm.IRModule(parts), target.tvm)
    except Exception as error:
        raise BuildError(f"code generation for {target.description} failed: {error}") from error
