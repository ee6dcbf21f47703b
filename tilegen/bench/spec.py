"""What an operator's folder says about its benchmark.  Imports neither torch nor TVM."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilegen import mechanisms
from tilegen.errors import ArgumentError
from tilegen.mechanisms import Mechanism

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Work:
    """What a direction must do at least.

    flops : additions, multiplications, divisions, comparisons and exponentials, each counted as one.
    elements : elements of the caller's dtype read or written when everything is touched once.
    """

    flops: float
    elements: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.elements + other.elements)


@dataclass(frozen=True)
class Benchmark:
    """How one operator is measured.

    Parameters
    ----------
    mechanism : the operator, by name.
    options : the option sets that are measured unless the user chooses.
    sizes : the sizes at which they are.
    lengths : values of T for the plot.
    peer : ``fn(config, **tensors) -> tuple of tensors``: the way to write it in PyTorch that is fastest under torch.compile.
    forward, backward : the least work of each direction, from the config and the sizes.
    rivals : other libraries' operators for the same thing by name, as functions ``fn(config)`` that give a function of the
        tensors, or None where the library has nothing for these options.  They import the library, which need not be installed.
    arguments : the public operator's arguments from tensors as the mechanism declares them, where the two are laid out differently.
    fixed : arguments that are no floating numbers, by name, from the sizes; nothing is differentiated by them.
    derived : sizes that follow from the others.
    """

    mechanism: str
    options: tuple[Mapping[str, Any], ...]
    sizes: Mapping[str, int]
    lengths: tuple[int, ...]
    peer: Callable[..., tuple[Any, ...]]
    forward: Callable[[Any, Mapping[str, int]], Work]
    backward: Callable[[Any, Mapping[str, int]], Work]
    rivals: Mapping[str, Callable[[Any], Callable[..., tuple[Any, ...]] | None]] = field(default_factory=dict)
    arguments: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    fixed: Callable[[Mapping[str, int]], Mapping[str, Any]] = field(default=lambda sizes: {})
    derived: Callable[[Mapping[str, int]], Mapping[str, int]] = field(default=lambda sizes: {})

    def described(self) -> Mechanism:
        """The mechanism that is measured."""
        return mechanisms.get(self.mechanism)

    def work(self, config: Any, sizes: Mapping[str, int]) -> dict[str, Work]:
        """The least work of a forward pass, and of a training step's forward and backward."""
        forward = self.forward(config, sizes)
        return {"forward": forward, "forward+backward": forward + self.backward(config, sizes)}


def load(op: str) -> Benchmark:
    """The benchmark of the operator called `op`.

    Raises
    ------
    ArgumentError
        When there is no such operator, or its folder has no ``benchmark.py``.
    """
    mechanisms.get(op)
    module = f"tilegen.ops.{op}.benchmark"
    try:
        found: Benchmark = importlib.import_module(module).BENCHMARK
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ArgumentError(f"op is {op!r}, which has no benchmark; describe one in ops/{op}/benchmark.py") from None
    return found
