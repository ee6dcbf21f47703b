"""Multi-head damped exponential moving average: every channel is filtered by N decaying averages of its own past.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.ema import reference
from tilegen.options import require_bools, require_direction


@dataclass(frozen=True)
class Config:
    """The static options.

    causal : position i sees j <= i only; otherwise a second set of averages runs from the end.
    initial_state, return_state : continue from, and hand back, the averages of the past; causal only.
    packed : several sequences in one row.
    """

    causal: bool = True
    initial_state: bool = False
    return_state: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        require_bools(self, *(field.name for field in dataclasses.fields(self)))
        require_direction(self, "initial_state", "return_state", reason="which has no state of fixed size")

    @property
    def rows(self) -> str:
        """The rows of the parameters: one a channel, twice that when a second set runs from the end."""
        return "C" if self.causal else "2*C"


STATE = ("B", "C", "N")


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """x, the five parameters, then the initial state when there is one."""
    orders = (config.rows, "N")
    specs = [ArgSpec("x", ("B", "T", "C"))]
    specs += [ArgSpec(name, orders, "acc") for name in ("delta", "alpha", "beta", "gamma")]
    specs.append(ArgSpec("omega", ("C",), "acc"))
    if config.initial_state:
        specs.append(ArgSpec("h", STATE, "acc"))
    return tuple(specs)


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """y, then the final state when it is wanted."""
    y = (ArgSpec("y", ("B", "T", "C")),)
    return (*y, ArgSpec("h_out", STATE, "acc")) if config.return_state else y


def step_config(config: Config) -> Config | None:
    """The config whose forward at T = 1 is one decoding step; the bidirectional form has none."""
    if not config.causal:
        return None
    return dataclasses.replace(config, initial_state=True, return_state=True, packed=False)


MECHANISM = register(
    Mechanism(
        name="ema",
        config=Config,
        symbolic=("B", "T"),
        static=("C", "N"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.ema.expression:forward",
        reference=reference.forward,
        representative={"B": 4, "T": 2048, "C": 512, "N": 16},
        step=step_config,
        tiles=lambda config: (),
    )
)
