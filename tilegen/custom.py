"""`tilegen.mechanism`: an operator of your own from one tensor expression.

The result is what the built-in operators are: differentiable, compiled on first use, tunable, exportable by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_SIZES = {"B": 4, "T": 2048, "H": 8}
"""Sizes at which kernels are searched unless `representative` names others."""


@dataclass(frozen=True)
class NoOptions:
    """The config of a mechanism without options."""


class CustomOperator:
    """A differentiable operator made by `mechanism`; ``mechanism`` is its description, as `tilegen tune` and export take it."""

    def __init__(self, mechanism: Mechanism):
        self.mechanism = mechanism
        self.__name__ = mechanism.name

    def __call__(self, *tensors: Tensor, **options: Any) -> Any:
        """The outputs for input `tensors` in the order of their specs; `options` are fields of the config."""
        from tilegen.torch import operator

        config = self.mechanism.config(**options)
        specs = self.mechanism.inputs(config)
        if len(tensors) != len(specs):
            raise ArgumentError(f"{self.__name__} got {len(tensors)} tensors, takes {len(specs)}: {', '.join(s.name for s in specs)}")
        results = operator(self.mechanism)(config, dict(zip((s.name for s in specs), tensors, strict=True)))
        return results[0] if len(results) == 1 else results


def mechanism(
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    symbolic: tuple[str, ...] = ("B", "T"),
    config: type = NoOptions,
    reference: Callable[..., Any] | None = None,
    representative: Mapping[str, int] | None = None,
    constant: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], CustomOperator]:
    """Make a tensor expression an operator.

    ::

        @tilegen.mechanism(inputs={"x": "B T C", "a": "B T C"}, outputs={"y": "B T C"})
        def recurrence(config, dims, x, a):
            return scan(x, axis=1, decay=a, name="y")

        y = recurrence(x, a)

    Parameters
    ----------
    inputs, outputs : shapes by name; dims are letters separated by blanks, or ints.  Arguments have the caller's dtype;
        write ``"acc: B C"`` for one kept in float32 (float64 beside float64).
    symbolic : dims that stay symbolic in the compiled code; every other letter is fixed in it.
    config : a frozen dataclass of static options, given to the operator as keywords.
    reference : ``fn(config, **tensors)`` in PyTorch, for benchmarks and the tuner's own tests.
    representative : sizes at which kernels are searched.
    constant : names of inputs that get no gradient; integers ("int32: B M") never do.

    Raises
    ------
    ArgumentError
        When a shape cannot be read, or the name is taken.
    """

    def decorate(expression: Callable[..., Any]) -> CustomOperator:
        given = tuple(_spec(name, text, name not in constant) for name, text in inputs.items())
        results = tuple(_spec(name, text, True) for name, text in outputs.items())
        letters = dict.fromkeys(dim for spec in (*given, *results) for dim in spec.shape if isinstance(dim, str))
        static = tuple(letter for letter in letters if letter not in symbolic)
        sizes = {letter: (representative or {}).get(letter, DEFAULT_SIZES.get(letter, 64)) for letter in letters}
        made = Mechanism(
            name=expression.__name__,
            config=config,
            symbolic=tuple(letter for letter in symbolic if letter in letters),
            static=static,
            inputs=lambda _: given,
            outputs=lambda _: results,
            expression=expression,
            reference=reference or (lambda config, **tensors: ()),
            representative=sizes,
        )
        return CustomOperator(register(made))

    return decorate


def _spec(name: str, text: str, differentiable: bool) -> ArgSpec:
    dtype, _, dims = text.rpartition(":")
    shape = tuple(int(dim) if dim.isdigit() else dim for dim in dims.split())
    if not shape or not all(isinstance(dim, int) or re.fullmatch(r"[A-Za-z]\w*", dim) for dim in shape):
        raise ArgumentError(f"the shape of '{name}' is {text!r}, must be letters or numbers separated by blanks, such as 'B T C'")
    kind = dtype.strip() or "io"
    return ArgSpec(name, shape, kind, differentiable and not kind.startswith(("int", "uint", "bool")))
