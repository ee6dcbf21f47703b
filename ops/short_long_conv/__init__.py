"""Short-long convolution: a short depthwise convolution, SiLU, a long depthwise convolution.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call, ``step.py`` decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.short_long_conv import reference
from tilegen.options import require_bools


@dataclass(frozen=True)
class Config:
    """The static options.

    causal : tap l of a kernel reaches l positions back; otherwise kernels are centred and reach both ways.
    packed : several sequences in one row.
    """

    causal: bool = True
    packed: bool = False

    def __post_init__(self) -> None:
        require_bools(self, "causal", "packed")


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """x, then the kernels with their taps first: channels are contiguous everywhere."""
    return ArgSpec("x", ("B", "T", "C")), ArgSpec("short", ("Ks", "C")), ArgSpec("long", ("Kl", "C"))


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """y."""
    return (ArgSpec("y", ("B", "T", "C")),)


MECHANISM = register(
    Mechanism(
        name="short_long_conv",
        config=Config,
        symbolic=("B", "T", "Kl"),
        static=("C", "Ks"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.short_long_conv.expression:forward",
        reference=reference.forward,
        representative={"B": 4, "T": 1024, "Kl": 1024, "C": 256, "Ks": 4},
        tiles=lambda config: (),
    )
)
