"""Measures one operator: checks it, then times it in turns with PyTorch."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilegen import doctor, ops
from tilegen._tvm import installed
from tilegen.bench import check, clock
from tilegen.bench.spec import Benchmark, Work
from tilegen.bundle import shapes
from tilegen.errors import ArgumentError
from tilegen.torch.precision import tf32_allowed

OURS, COMPILED, EAGER = "tilegen", "torch.compile", "torch eager"
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Row:
    """One contender, one pass, one shape."""

    options: dict[str, Any]
    sizes: dict[str, int]
    dtype: str
    direction: str
    contender: str
    seconds: clock.Timing
    work: Work
    itemsize: int
    copy_bandwidth: float
    """Bytes per second of a large copy, measured in this run."""
    speedup: float
    """Times faster than torch.compile in the same turns; above 1 is faster."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second, counting what has to be read and written at least."""
        return self.work.elements * self.itemsize / self.seconds.median

    @property
    def share(self) -> float:
        """The part of the copy bandwidth that is reached."""
        return self.bandwidth / self.copy_bandwidth

    @property
    def flops(self) -> float:
        """Operations per second, counting what has to be computed at least."""
        return self.work.flops / self.seconds.median


@dataclass(frozen=True)
class Plan:
    """What to measure.  `repeats` is the number of samples whose median is reported."""

    benchmark: Benchmark
    options: Sequence[Mapping[str, Any]]
    sizes: Sequence[Mapping[str, int]]
    dtype: torch.dtype
    device: torch.device
    repeats: int = 11
    passes: Sequence[str] = PASSES
    eager: bool = True


def measure(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Rows in the order in which they are measured.

    Parameters
    ----------
    say : is told what happens, for a progress line.

    Raises
    ------
    ToleranceError
        When a result or gradient is wrong; nothing of that shape is timed then.
    """
    say("copy bandwidth")
    bandwidth = clock.copy_bandwidth(plan.device)
    mechanism = plan.benchmark.described()
    for options in plan.options:
        config = mechanism.config(**options)
        for sizes in plan.sizes:
            text = f"{' '.join(f'{k}={v}' for k, v in options.items())} {' '.join(f'{k}{v}' for k, v in sizes.items())}"
            inputs = draw(plan, config, sizes)
            every = completed(plan, config, sizes)
            ours = _operator(plan, options, every)
            formula = _formula(plan, config, every)
            say(f"checking {text}")
            # One sequence: the reference keeps every moment in float64.
            check.require(check.judge(ours, formula, _one_sequence(plan, config, inputs), measure=check.norm))
            torch.compiler.reset()  # one graph a shape: shapes are static for the peer, and graphs are limited
            functions = {OURS: ours, COMPILED: torch.compile(formula, dynamic=False)}
            if plan.eager:
                functions[EAGER] = formula
            functions |= _rivals(plan, config, say)
            work = plan.benchmark.work(config, sizes)
            for direction in plan.passes:
                say(f"timing {direction} {text}")
                calls = {name: _call(function, inputs, direction) for name, function in functions.items()}
                timings = clock.compare(calls, plan.repeats, plan.device)
                for name, timing in timings.items():
                    speedup = timings[COMPILED].median / timing.median
                    yield Row(
                        dict(options), dict(sizes), str(plan.dtype).removeprefix("torch."), direction, name, timing,
                        work[direction], plan.dtype.itemsize, bandwidth, speedup,
                    )  # fmt: skip


def draw(plan: Plan, config: Any, sizes: Mapping[str, int]) -> list[Tensor]:
    """Normally distributed inputs, always the same ones; those that are fixed are left out (see `completed`)."""
    generator = torch.Generator().manual_seed(0)
    concrete = []
    sizes = {**sizes, **plan.benchmark.derived(sizes)}
    fixed = plan.benchmark.fixed(sizes)
    for spec in plan.benchmark.described().inputs(config):
        if spec.name in fixed:
            continue
        shape = [shapes.evaluate(dim, sizes) for dim in spec.shape]
        dtype = plan.dtype if spec.dtype == "io" else torch.float32
        concrete.append(torch.randn(shape, generator=generator).to(plan.device, dtype))
    return concrete


def completed(plan: Plan, config: Any, sizes: Mapping[str, int]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A function that puts fixed arguments among the drawn ones."""
    sizes = {**sizes, **plan.benchmark.derived(sizes)}
    fixed = {name: x.to(plan.device) for name, x in plan.benchmark.fixed(sizes).items()}
    names = [spec.name for spec in plan.benchmark.described().inputs(config)]

    def every(drawn: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(drawn)
        return [fixed[name] if name in fixed else next(rest) for name in names]

    return every


def _one_sequence(plan: Plan, config: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The first sequence of those inputs that have one for each of the batch."""
    specs = [spec for spec in plan.benchmark.described().inputs(config) if spec.dtype in ("io", "acc")]
    return [x[:1] if spec.shape[0] == "B" else x for spec, x in zip(specs, inputs, strict=True)]


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what a run was made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else doctor.cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "tf32": device.type == "cuda" and tf32_allowed(),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {package: installed(package) for package in ("tilegen", "torch", "apache-tvm", "apache-tvm-ffi")},
    }


def device_named(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"--device is {name!r}, must be auto, cpu or cuda[:index]") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"--device is {name!r}, but torch sees no CUDA device; see `tilegen doctor`")
    return device


Every = Callable[[Sequence[Tensor]], list[Tensor]]


def _operator(plan: Plan, options: Mapping[str, Any], every: Every) -> Callable[..., tuple[Tensor, ...]]:
    """The public operator with its options, as a function of the inputs that returns a tuple."""
    public = getattr(ops, plan.benchmark.mechanism)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        result = public(*plan.benchmark.arguments(every(inputs)), **options)
        return _floating(result if isinstance(result, tuple) else (result,))

    return call


def _rivals(plan: Plan, config: Any, say: Callable[[str], None]) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """The operators of other libraries that are installed and run on this device; the others are named in the progress line."""
    found = {}
    for name, make in plan.benchmark.rivals.items():
        try:
            function = make(config)
        except ImportError:
            say(f"{name} is not installed")
            continue
        if function is not None and plan.device.type == "cuda":
            found[name] = function
    return found


def _formula(plan: Plan, config: Any, every: Every) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *inputs: _floating(plan.benchmark.peer(config, *every(inputs)))


def _floating(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What errors and gradients are of."""
    return tuple(y for y in results if y.is_floating_point())


def _call(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], direction: str) -> clock.Call:
    """A call without arguments that makes one pass."""
    if direction == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward

    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        seeds = [torch.randn_like(y) for y in function(*inputs)]

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, seeds)

    return step
