"""What a mechanism is: a name, its static options, its arguments, and one tensor expression.

This module imports neither TVM nor torch, so that describing a mechanism costs nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tilegen.errors import ArgumentError

ACC = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
"""The dtype in which sums, states and normalisers of an operator are kept, by the dtype of its arguments."""


@dataclass(frozen=True)
class ArgSpec:
    """One tensor argument or result.

    A dim is an int, a symbolic size ("B", "T"), a static size ("C"), or a sum, product or quotient of those and
    of integer options of the config ("order+1").  `dtype` is "io" (the caller's), "acc" (see `ACC`) or explicit.
    `empty` is what a state is before the first position: a number, or "largest" for the largest finite one of its dtype.
    """

    name: str
    shape: tuple[str | int, ...]
    dtype: str = "io"
    differentiable: bool = True
    empty: float | Literal["largest"] = 0.0

    def concrete_dtype(self, io: str) -> str:
        """The dtype of this argument in an instance whose arguments are `io`."""
        return {"io": io, "acc": ACC[io]}.get(self.dtype, self.dtype)


@dataclass(frozen=True)
class Mechanism:
    """A mechanism as its folder under ``ops/`` describes it.

    Parameters
    ----------
    config : frozen dataclass of static, JSON-able options.
    symbolic, static : names of the sizes that stay symbolic in the built kernel, and of those fixed in it.
    inputs, outputs : the argument specs for a config.
    expression : ``fn(config, dims, **tensors) -> tuple of te.Tensor``, or ``"module:function"`` resolved on first use.
    reference : ``fn(config, **tensors) -> tuple of torch.Tensor``, the plain statement of the same mathematics.
    representative : sizes at which kernels are searched.
    saved : the stages that the forward leaves for the backward, by name, or a function that names them; None where the planner chooses.
    step : maps a config to the one whose forward at T = 1 is the decoding step, or to None; None where no config has one.
    tiles : the lengths of the tiles that a config cuts the sequence into.  A mechanism that names them has an option
        ``packed``: several sequences in one row (see `tilegen.expression.pack`).  A state is an input `name` and an output
        `name_out`.
    host : whether it is for CPUs alone: a form of something that has a better one on GPUs.
    """

    name: str
    config: type
    symbolic: tuple[str, ...]
    static: tuple[str, ...]
    inputs: Callable[[Any], tuple[ArgSpec, ...]]
    outputs: Callable[[Any], tuple[ArgSpec, ...]]
    expression: str | Callable[..., tuple[Any, ...]]
    reference: Callable[..., tuple[Any, ...]]
    representative: dict[str, int]
    step: Callable[[Any], Any] | None = None
    saved: tuple[str, ...] | Callable[[Instance], tuple[str, ...] | None] | None = None
    tiles: Callable[[Any], tuple[int, ...]] | None = None
    host: bool = False

    def arguments(self, config: Any) -> tuple[ArgSpec, ...]:
        """What a library takes: with packed sequences the tables that say where each of them lies, then the inputs."""
        given = self.inputs(config)
        if not is_packed(config):
            return given
        return (*(spec for length in self.lengths(config) for spec in table_specs(length)), *map(_in_one_row, given))

    def results(self, config: Any) -> tuple[ArgSpec, ...]:
        """What a library gives."""
        made = self.outputs(config)
        return tuple(map(_in_one_row, made)) if is_packed(config) else made

    def sizes(self, config: Any) -> tuple[str, ...]:
        """The names of the sizes that stay symbolic: with packed sequences S instead of B, and the number of tiles."""
        if not is_packed(config):
            return self.symbolic
        return (*(size for size in self.symbolic if size != "B"), "S", *(tile_count(n) for n in self.lengths(config) if n > 1))

    def lengths(self, config: Any) -> tuple[int, ...]:
        """The lengths of all tiles, positions first."""
        assert self.tiles is not None, f"{self.name} names no tiles"
        return (1, *sorted({*self.tiles(config)} - {1}))

    def forward(self) -> Callable[..., tuple[Any, ...]]:
        """The tensor expression as a callable; imports TVM when given as a string."""
        return resolve(self.expression)


def is_packed(config: Any) -> bool:
    """Whether a config is for several sequences in one row."""
    return bool(getattr(config, "packed", False))


def tile_count(length: int) -> str:
    """The name of the number of tiles of a length, over all packed sequences."""
    return "T" if length == 1 else f"N{length}"


def table_specs(length: int) -> tuple[ArgSpec, ...]:
    """The tables of packed sequences: tiles starts[s] up to ends[s] belong to sequence s, owner[n] is the sequence of tile n."""
    rows = {"starts": "S", "ends": "S", "owner": tile_count(length)}
    return tuple(ArgSpec(f"{role}_{length}", (size,), "int32", differentiable=False) for role, size in rows.items())


def _in_one_row(spec: ArgSpec) -> ArgSpec:
    """The spec with packed sequences: one row of positions; what has no positions has one entry for each sequence."""
    batch: str | int = 1 if "T" in spec.shape else "S"
    return dataclasses.replace(spec, shape=tuple(batch if dim == "B" else dim for dim in spec.shape))


def resolve(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """The object that ``"module:name"`` names, or `target` itself."""
    if callable(target):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Instance:
    """A mechanism with every static choice made: what one compiled library serves."""

    mechanism: Mechanism
    config: Any
    static: dict[str, int] = field(hash=False)
    dtype: str

    @property
    def key(self) -> str:
        """Canonical JSON text: equal for equal instances, in every process."""
        parts = {
            "op": self.mechanism.name,
            "config": dataclasses.asdict(self.config),
            "static": self.static,
            "dtype": self.dtype,
        }
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_key(cls, key: str) -> Instance:
        """The instance that `key` describes; its mechanism must be registered."""
        parts = json.loads(key)
        mechanism = get(parts["op"])
        return cls(mechanism, mechanism.config(**parts["config"]), parts["static"], parts["dtype"])

    @property
    def symbolic(self) -> tuple[str, ...]:
        """The names of the sizes that stay symbolic."""
        return self.mechanism.sizes(self.config)

    def step_instance(self) -> Instance | None:
        """The instance whose forward at T = 1 is the decoding step."""
        step = self.mechanism.step
        config = None if step is None else step(self.config)
        return None if config is None else dataclasses.replace(self, config=config)

    def sizes(self) -> dict[str, int]:
        """Static sizes and the integer options of the config, by name."""
        options = dataclasses.asdict(self.config)
        return {k: v for k, v in options.items() if isinstance(v, int) and not isinstance(v, bool)} | self.static


_REGISTRY: dict[str, Mechanism] = {}


def register(mechanism: Mechanism) -> Mechanism:
    """Make `mechanism` known by its name; a second one of that name is an error unless it is the same object."""
    known = _REGISTRY.setdefault(mechanism.name, mechanism)
    if known is not mechanism:
        raise ArgumentError(f"mechanism '{mechanism.name}' is registered already; choose another name")
    return mechanism


def get(name: str) -> Mechanism:
    """The mechanism called `name`."""
    if name not in _REGISTRY:
        importlib.import_module("tilegen.ops")
    if name not in _REGISTRY:
        raise ArgumentError(f"op is {name!r}, must be one of {', '.join(names())}")
    return _REGISTRY[name]


def default_options(name: str) -> dict[str, Any]:
    """The options of a mechanism that have a default, by name; none when it is not registered (nothing is imported to find it)."""
    found = _REGISTRY.get(name)
    fields = dataclasses.fields(found.config) if found is not None else ()
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def names() -> list[str]:
    """The names of all registered mechanisms, sorted."""
    importlib.import_module("tilegen.ops")
    return sorted(_REGISTRY)
