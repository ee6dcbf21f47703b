"""Compaction: the active rows of every sequence packed one after another, and the way back.

``expression.py`` is the mathematics of `compact` and `extract`, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.compact import reference


@dataclass(frozen=True)
class Config:
    """The static options of `compact`.

    return_positions : also give the place of every packed row in its own sequence.
    """

    return_positions: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.return_positions, bool):
            raise ArgumentError(f"return_positions is {self.return_positions!r}, must be True or False")


@dataclass(frozen=True)
class ExtractConfig:
    """`extract` has no options."""


ROWS, PACKED = ("B", "T", "C"), ("R", "C")
ACTIVE = ArgSpec("active", ("B", "T"), "bool", differentiable=False)


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """x with N = B T, which rows are active, and a tensor whose length is the number of packed rows; its values are not read."""
    return ArgSpec("x", ("N", "C")), ACTIVE, ArgSpec("room", ("R",), "int32", differentiable=False)


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """The packed rows, where each sequence begins among them, and the positions when they are wanted."""
    packed = ArgSpec("packed", PACKED), ArgSpec("cu_seqlens", ("B+1",), "int32", differentiable=False)
    return (*packed, ArgSpec("positions", ("R",), "int32", differentiable=False)) if config.return_positions else packed


def extract_inputs(config: ExtractConfig) -> tuple[ArgSpec, ...]:
    """The packed rows, the first of each sequence, and which rows are active."""
    return ArgSpec("packed", PACKED), ArgSpec("starts", ("B",), "int32", differentiable=False), ACTIVE


def extract_outputs(config: ExtractConfig) -> tuple[ArgSpec, ...]:
    """y, with zeros where a row is not active."""
    return (ArgSpec("y", ROWS),)


COMPACT = register(
    Mechanism(
        name="compact",
        config=Config,
        symbolic=("N", "B", "T", "R"),
        static=("C",),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.compact.expression:compact",
        reference=reference.compact,
        representative={"N": 8192, "B": 4, "T": 2048, "R": 8192, "C": 512},
    )
)

EXTRACT = register(
    Mechanism(
        name="extract",
        config=ExtractConfig,
        symbolic=("B", "T", "R"),
        static=("C",),
        inputs=extract_inputs,
        outputs=extract_outputs,
        expression="tilegen.ops.compact.expression:extract",
        reference=reference.extract,
        representative={"B": 4, "T": 2048, "R": 8192, "C": 512},
    )
)
