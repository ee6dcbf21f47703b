"""A stand-in for compiled bundles: the same interface, computing with torch.  It tests the binding, not the compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from tilegen.bundle.manifest import Argument
from tilegen.mechanisms import ArgSpec, Instance, Mechanism
from tilegen.torch.signature import DTYPES

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Config:
    scale: float = 1.0
    width: int = 2
    offset: bool = False


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    rows = (ArgSpec("q", ("B", "T", "C")), ArgSpec("k", ("B", "T", "C")))
    state = (ArgSpec("s", ("B", "C", "width+1"), "acc"), ArgSpec("c", ("B", "C"), "acc", differentiable=False))
    return rows + state if config.offset else rows


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    ends = ArgSpec("z", ("B", "C"), "acc"), ArgSpec("top", ("B", "C"), "acc", differentiable=False)
    return (ArgSpec("y", ("B", "T", "C")), *ends)


def reference(
    config: Config, q: torch.Tensor, k: torch.Tensor, s: torch.Tensor | None = None, c: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """y = scale q exp(k) + s's sum, z = sum of q k over T, top = max of k over T."""
    y = config.scale * q * k.exp()
    if s is not None and c is not None:
        y = y + (s.sum(-1) + c).unsqueeze(1)
    return y, (q * k).sum(1), k.detach().amax(1)


MECHANISM = Mechanism("binding_double", Config, ("B", "T"), ("C",), inputs, outputs, "nowhere:nothing", reference, {})


def bundle(instance: Instance, gpu: int | None = None, wide: bool = False, tf32: bool = False) -> SimpleNamespace:
    """What `load_or_compile` would give for an instance of MECHANISM."""
    config, sizes = instance.config, instance.sizes()

    def argument(spec: ArgSpec, role: str, prefix: str = "") -> Argument:
        shape = tuple(sizes["width"] + 1 if dim == "width+1" else sizes.get(str(dim), dim) for dim in spec.shape)
        return Argument(prefix + spec.name, role, spec.concrete_dtype(instance.dtype), shape)

    taken, given = inputs(config), outputs(config)
    saved = Argument("tiles", "saved", "float32", ("B", "(T + 3)//4", sizes["C"]))
    scratch = Argument("scratch", "workspace", "float32", ("B*T", 2))
    forward = [argument(s, "input") for s in taken] + [argument(s, "output") for s in given] + [saved, scratch]
    backward = (
        [argument(s, "input") for s in taken if s.differentiable]
        + [saved]
        + [argument(s, "grad_output", "grad_") for s in given if s.differentiable]
        + [argument(s, "grad_input", "grad_") for s in taken if s.differentiable]
        + [scratch]
    )
    functions = {
        "forward": Function(forward, lambda args: _forward(config, args)),
        "backward": Function(backward, lambda args: _backward(config, args)),
    }
    record = {"function": "forward", "kernel": "forward.map0", "rule": "map", "source": "default", "record": None}
    return SimpleNamespace(function=functions.__getitem__, manifest=SimpleNamespace(provenance=(record,)))


class Function:
    """One function of a bundle; counts its calls and insists on what compiled code insists on."""

    def __init__(self, args: list[Argument], body: Callable[[dict[str, torch.Tensor]], None]) -> None:
        self.args, self.body, self.calls = tuple(args), body, 0

    def call(self, tensors: Tensors) -> None:
        self.calls += 1
        assert len(tensors) == len(self.args)
        for arg, x in zip(self.args, tensors, strict=True):
            assert x.is_contiguous(), arg.name
            assert x.data_ptr() % 64 == 0, arg.name
            assert x.dtype is DTYPES[arg.dtype], arg.name
        self.body({arg.name: x.detach() for arg, x in zip(self.args, tensors, strict=True)})


def _forward(config: Config, args: dict[str, torch.Tensor]) -> None:
    taken = {spec.name: args[spec.name] for spec in inputs(config)}
    for spec, value in zip(outputs(config), reference(config, **taken), strict=True):
        args[spec.name].copy_(value)
    args["tiles"].fill_(7)


def _backward(config: Config, args: dict[str, torch.Tensor]) -> None:
    assert (args["tiles"] == 7).all()
    q, k, dy, dz = args["q"], args["k"], args["grad_y"], args["grad_z"].unsqueeze(1).to(args["q"].dtype)
    args["grad_q"].copy_(config.scale * dy * k.exp() + dz * k)
    args["grad_k"].copy_(config.scale * dy * q * k.exp() + dz * q)
    if config.offset:
        args["grad_s"].copy_(dy.sum(1).unsqueeze(-1).expand(args["grad_s"].shape))


def with_offset(config: Config) -> Config:
    return dataclasses.replace(config, offset=True)
