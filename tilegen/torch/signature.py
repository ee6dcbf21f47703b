"""What one config of a mechanism takes and gives, and the check that a call keeps to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tilegen.bundle import shapes as text
from tilegen.errors import ArgumentError
from tilegen.mechanisms import ACC, ArgSpec, Mechanism
from tilegen.torch.sizes import first_uses, shapes_function

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64,
          "int32": torch.int32, "int64": torch.int64, "bool": torch.bool}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DEVICES = ("cpu", "cuda")
"""Types of devices that libraries are built for."""


class Signature:
    """Argument specs of `mechanism` under `config`, prepared for a quick check of every call.

    Attributes
    ----------
    text : the config as JSON, which is how it travels through torch's dispatcher.
    static_at, io_at : where the static sizes and the caller's dtype are read, as (argument, dim) and as argument.
    """

    def __init__(self, mechanism: Mechanism, config: Any) -> None:
        self.mechanism, self.config, self.text = mechanism, config, encode(config)
        self.inputs, self.outputs = mechanism.arguments(config), mechanism.results(config)
        self.names = tuple(spec.name for spec in self.inputs)
        self.dtypes = tuple(spec.dtype for spec in self.inputs)
        self.options = {k: v for k, v in dataclasses.asdict(config).items() if type(v) is int}
        shapes = [spec.shape for spec in self.inputs]
        sizes = (*mechanism.sizes(config), *mechanism.static)
        places = first_uses(shapes, sizes)
        for name in sizes:
            if name not in places:
                raise ArgumentError(f"size {name} of {mechanism.name} is no dim of any input, so no call can tell it; add one")
        self.static_at = tuple(places[name] for name in mechanism.static)
        self.io_at = next(i for i, spec in enumerate(self.inputs) if spec.dtype == "io")
        self._expected = {io: [DTYPES[spec.concrete_dtype(io)] for spec in self.inputs] for io in ACC}
        self._sizes_at = (*places.values(),)
        self._options = (*self.options.values(),)
        self._shapes = shapes_function(shapes, (*places, *self.options))

    def check(self, tensors: Sequence[Any]) -> None:
        """Raise ArgumentError, naming the argument and the remedy, unless `tensors` fit."""
        for spec, x in zip(self.inputs, tensors, strict=True):
            _check_alone(spec, x)
        io = tensors[self.io_at]
        dtype = NAMES.get(io.dtype, "")
        if dtype not in ACC:
            raise ArgumentError(
                f"{self.names[self.io_at]} has dtype {_name(io.dtype)}, must be one of {', '.join(ACC)}; "
                "cast it with .to(torch.float32)"
            )
        device, expected = io.device, self._expected[dtype]
        for spec, x, wanted in zip(self.inputs, tensors, expected, strict=True):
            if x.dtype is not wanted or x.device != device:
                self._check_with(spec, x, io, dtype)
        sizes = [tensors[i].shape[d] for i, d in self._sizes_at]
        shapes = self._shapes(*sizes, *self._options)
        if 0 in sizes or any(x.shape != shape for x, shape in zip(tensors, shapes, strict=True)):
            # The slow way, which finds the words.
            named = [(spec.name, spec.shape) for spec in self.inputs]
            text.solve(named, [tuple(x.shape) for x in tensors], self.options)

    def _check_with(self, spec: ArgSpec, x: torch.Tensor, io: torch.Tensor, dtype: str) -> None:
        """Check an argument against the one that sets dtype and device."""
        first, expected = self.names[self.io_at], spec.concrete_dtype(dtype)
        if x.dtype is not DTYPES[expected]:
            raise ArgumentError(
                f"{spec.name} has dtype {_name(x.dtype)}, must be {expected} when {first} is {dtype}; "
                f"cast it with .to(torch.{expected})"
            )
        if x.device != io.device:
            raise ArgumentError(f"{spec.name} is on {x.device}, must be on {io.device} as {first} is; move it with .to()")

    def gather(self, tensors: Mapping[str, Any]) -> list[Any]:
        """The named arguments in the order of the specs; a missing or an unknown name is an ArgumentError."""
        if tuple(tensors) == self.names:
            return list(tensors.values())
        wrong = [f"{name} is missing" for name in self.names if name not in tensors]
        wrong += [f"{name} is not an argument" for name in tensors if name not in self.names]
        if wrong:
            raise ArgumentError(f"{wrong[0]}; {self.mechanism.name} takes {', '.join(self.names)} with {self.text}")
        return [tensors[name] for name in self.names]


def encode(config: Any) -> str:
    """The config as canonical JSON text, by code that torch.compile can trace."""
    return "{" + ",".join([f'"{name}":{_json(getattr(config, name))}' for name in sorted(config.__dataclass_fields__)]) + "}"


def decode(mechanism: Mechanism, config: str) -> Any:
    """The config that `encode` wrote."""
    return mechanism.config(**json.loads(config))


def _json(value: Any) -> str:
    if isinstance(value, (bool, type(None))):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (tuple, list)):
        return "[" + ",".join([_json(item) for item in value]) + "]"
    # A number may be symbolic while torch.compile traces; as the key of a dict it becomes a constant, with a guard.
    return f'"{value}"' if isinstance(value, str) else repr(next(iter({value: None})))


def _check_alone(spec: ArgSpec, x: Any) -> None:
    """Check what needs no other argument."""
    if not isinstance(x, torch.Tensor):
        raise ArgumentError(f"{spec.name} is a {type(x).__name__}, must be a torch.Tensor; convert it with torch.as_tensor")
    if x.layout is not torch.strided:
        raise ArgumentError(f"{spec.name} has layout {x.layout}, must be dense; convert it with .to_dense()")
    if x.dim() != len(spec.shape):
        raise ArgumentError(
            f"{spec.name} has {x.dim()} dims {list(x.shape)}, must have {len(spec.shape)}: [{', '.join(map(str, spec.shape))}]; "
            f"reshape {spec.name} to that form"
        )
    if x.device.type not in DEVICES:
        raise ArgumentError(f"{spec.name} is on {x.device}, must be on {' or '.join(DEVICES)}; move it with .to()")
    if x.requires_grad and not spec.differentiable:
        raise ArgumentError(f"{spec.name} requires grad, must be a constant for differentiation; pass {spec.name}.detach()")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
