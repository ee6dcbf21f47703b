"""Linear attention: softmax taken off, so that the past is one matrix a head.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.linear_attention import reference
from tilegen.options import finite_scale, require_bools, require_direction, require_integer

DECAYS = ("none", "head", "token")


@dataclass(frozen=True)
class Config:
    """The static options.

    causal : position i sees j <= i only.
    scale : factor of q k^T; None is D^-1/2.
    decay : log-decay of the state: none, one a head [H], or one a token and head [B, T, H]; causal only.
    normalize : divide each row by the sum of its weights.
    initial_state, return_state : continue from, and hand back, the state S (and z with `normalize`); causal only.
    chunk : positions that are computed as one tile; changes rounding only.
    packed : several sequences in one row.
    """

    causal: bool = True
    scale: float | None = None
    decay: Literal["none", "head", "token"] = "none"
    normalize: bool = False
    initial_state: bool = False
    return_state: bool = False
    chunk: int = 64
    packed: bool = False

    def __post_init__(self) -> None:
        require_bools(self, "causal", "normalize", "initial_state", "return_state", "packed")
        object.__setattr__(self, "scale", finite_scale(self.scale, "D^-1/2"))
        if self.decay not in DECAYS:
            raise ArgumentError(f"decay is {self.decay!r}, must be one of {', '.join(DECAYS)}")
        require_integer("chunk", self.chunk, 1, usual=64)
        require_direction(self, "decay", "initial_state", "return_state")


KEYS, VALUES = ("B", "T", "H", "D"), ("B", "T", "H", "E")
DECAY = {"none": (), "head": (ArgSpec("decay", ("H",), "acc"),), "token": (ArgSpec("decay", ("B", "T", "H"), "acc"),)}


def state_specs(config: Config, suffix: str = "") -> tuple[ArgSpec, ...]:
    """S [B, H, D, E], the sum of k^T v, and with `normalize` z [B, H, D], the sum of k."""
    S, z = ArgSpec("S" + suffix, ("B", "H", "D", "E"), "acc"), ArgSpec("z" + suffix, ("B", "H", "D"), "acc")
    return (S, z) if config.normalize else (S,)


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """q, k, v, then the decay and the initial state when there are such."""
    rows = (ArgSpec("q", KEYS), ArgSpec("k", KEYS), ArgSpec("v", VALUES))
    return rows + DECAY[config.decay] + (state_specs(config) if config.initial_state else ())


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """o, then the final state when it is wanted."""
    o = (ArgSpec("o", VALUES),)
    return o + state_specs(config, "_out") if config.return_state else o


def step_config(config: Config) -> Config | None:
    """The config whose forward at T = 1 is one decoding step; the bidirectional form has none."""
    return dataclasses.replace(config, initial_state=True, return_state=True, chunk=1, packed=False) if config.causal else None


MECHANISM = register(
    Mechanism(
        name="linear_attention",
        config=Config,
        symbolic=("B", "T", "H"),
        static=("D", "E"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.linear_attention.expression:forward",
        reference=reference.forward,
        representative={"B": 2, "T": 2048, "H": 8, "D": 64, "E": 64},
        step=step_config,
        tiles=lambda config: (config.chunk,),
    )
)
