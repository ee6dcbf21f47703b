"""A linear map of the first rows of a buffer, whose number the device knows.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.packed_linear import reference
from tilegen.options import require_bools


@dataclass(frozen=True)
class Config:
    """The static options.

    bias : whether a vector is added to every row that is used.
    """

    bias: bool = False

    def __post_init__(self) -> None:
        require_bools(self, "bias")


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """x, the weight as `torch.nn.Linear` has it, the bias when there is one, and how many rows are used."""
    bias = (ArgSpec("bias", ("E",)),) if config.bias else ()
    return ArgSpec("x", ("R", "D")), ArgSpec("weight", ("E", "D")), *bias, ArgSpec("count", (1,), "int32", differentiable=False)


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """y, with zeros behind the rows that are used."""
    return (ArgSpec("y", ("R", "E")),)


MECHANISM = register(
    Mechanism(
        name="packed_linear",
        config=Config,
        symbolic=("R",),
        static=("D", "E"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.packed_linear.expression:forward",
        reference=reference.forward,
        representative={"R": 2048, "D": 512, "E": 512},
    )
)
