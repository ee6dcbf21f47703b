"""Short-long convolution: a short depthwise convolution, SiLU, a long depthwise convolution.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call, ``step.py`` decoding.
``blocks.py`` is another form of the long convolution, for long kernels; ``form.py`` says where it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.short_long_conv import reference
from tilegen.options import require_bools, require_integer


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


@dataclass(frozen=True)
class BlockConfig:
    """The static options of a long convolution by blocks.

    blocks, length : N blocks of m positions; sequences have N m.
    width : neighbouring channels that are computed together; divides their number.
    causal : as in `Config`.
    """

    blocks: int = 32
    length: int = 64
    width: int = 16
    causal: bool = True

    def __post_init__(self) -> None:
        for name in ("blocks", "length", "width"):
            require_integer(name, getattr(self, name), 1)
        require_bools(self, "causal")

    @property
    def lags(self) -> int:
        """Blocks of the kernel: those of the past, and with `causal` False as many of the future."""
        return self.blocks if self.causal else 2 * self.blocks


BLOCKED, KERNELS = ("B", "blocks*length", "C"), ("3*blocks", "2*length", "width")


def _table(name: str, *shape: str | int) -> ArgSpec:
    return ArgSpec(name, shape, "acc", differentiable=False)


def spectrum_inputs(config: BlockConfig) -> tuple[ArgSpec, ...]:
    """The taps of S kernels, and the tables that transform them."""
    lags = "blocks" if config.causal else "2*blocks"
    return ArgSpec("taps", ("S", f"{lags}*length", "C")), _table("v", "2*blocks", lags), _table("w", "3*blocks", 2, 2)


def spectrum_outputs(config: BlockConfig) -> tuple[ArgSpec, ...]:
    """The kernels of every frequency."""
    return (ArgSpec("kernels", ("C//width", "S", *KERNELS), "acc"),)


def block_inputs(config: BlockConfig) -> tuple[ArgSpec, ...]:
    """x, the kernels of every frequency, and the tables that transform x and the result."""
    tables = (
        _table("u", "2*blocks", "blocks"),
        _table("g", "blocks", "2*blocks"),
        _table("a", "3*blocks", 2),
        _table("z", "2*blocks", 3),
    )
    return ArgSpec("x", BLOCKED), ArgSpec("kernels", ("C//width", 1, *KERNELS), "acc"), *tables


def block_outputs(config: BlockConfig) -> tuple[ArgSpec, ...]:
    """y."""
    return (ArgSpec("y", BLOCKED),)


SPECTRUM = register(
    Mechanism(
        name="block_spectrum",
        config=BlockConfig,
        symbolic=("S",),
        static=("C",),
        inputs=spectrum_inputs,
        outputs=spectrum_outputs,
        expression="tilegen.ops.short_long_conv.blocks:spectrum",
        reference=reference.spectrum,
        representative={"S": 1, "C": 256},
        host=True,
    )
)

BLOCKS = register(
    Mechanism(
        name="block_convolution",
        config=BlockConfig,
        symbolic=("B",),
        static=("C",),
        inputs=block_inputs,
        outputs=block_outputs,
        expression="tilegen.ops.short_long_conv.blocks:convolve",
        reference=reference.blocks,
        representative={"B": 4, "C": 256},
        host=True,
    )
)
