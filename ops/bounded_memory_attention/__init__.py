"""Attention with bounded-memory control (ABC): every head attends to N slots, into which control weights write the past.

``expression.py`` and ``weights.py`` are the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users
call, ``control.py`` the strategies that fill the slots.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.bounded_memory_attention import reference
from tilegen.options import finite_scale, require_bools, require_direction, require_integer

NORMALIZERS = ("running", "fixed", "none")


@dataclass(frozen=True)
class Config:
    """The static options.

    normalizer : what a slot holds: "running" the average of the past weighted by exp(s), "fixed" a sum whose weights were
        normalised when they were written, "none" the sum weighted by s itself.
    causal : position i sees j <= i only.
    scale : factor of q k^T; None is D^-1/2.
    initial_state, return_state : continue from, and hand back, the slots and their normaliser; causal only.
    acc_control : s is in the dtype of sums (float32 beside half precision) instead of that of q.
    chunk : positions that are computed as one tile; changes rounding only.
    packed : several sequences in one row.
    """

    normalizer: Literal["running", "fixed", "none"] = "running"
    causal: bool = True
    scale: float | None = None
    initial_state: bool = False
    return_state: bool = False
    acc_control: bool = False
    chunk: int = 32
    packed: bool = False

    def __post_init__(self) -> None:
        if self.normalizer not in NORMALIZERS:
            raise ArgumentError(f"normalizer is {self.normalizer!r}, must be one of {', '.join(NORMALIZERS)}")
        require_bools(self, "causal", "initial_state", "return_state", "acc_control", "packed")
        object.__setattr__(self, "scale", finite_scale(self.scale, "D^-1/2"))
        require_integer("chunk", self.chunk, 1, usual=32)
        require_direction(self, "initial_state", "return_state")


KEYS, VALUES, SLOTS = ("B", "T", "H", "D"), ("B", "T", "H", "E"), ("B", "T", "H", "N")


def state_specs(config: Config, suffix: str = "") -> tuple[ArgSpec, ...]:
    """K [B, H, N, D] and V [B, H, N, E], what the slots hold, and with a normaliser z [B, H, N], its logarithm."""
    K, V = ArgSpec("K" + suffix, ("B", "H", "N", "D"), "acc"), ArgSpec("V" + suffix, ("B", "H", "N", "E"), "acc")
    z = ArgSpec("z" + suffix, ("B", "H", "N"), "acc", empty=-math.inf)
    return (K, V) if config.normalizer == "none" else (K, V, z)


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """q, k, v, s, then the initial state when there is one."""
    rows = (ArgSpec("q", KEYS), ArgSpec("k", KEYS), ArgSpec("v", VALUES))
    s = ArgSpec("s", SLOTS, "acc" if config.acc_control else "io")
    return (*rows, s, *(state_specs(config) if config.initial_state else ()))


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """o, then the final state when it is wanted."""
    o = (ArgSpec("o", VALUES),)
    return o + state_specs(config, "_out") if config.return_state else o


def step_config(config: Config) -> Config | None:
    """The config whose forward at T = 1 is one decoding step; the bidirectional form has none."""
    return dataclasses.replace(config, initial_state=True, return_state=True, chunk=1, packed=False) if config.causal else None


MECHANISM = register(
    Mechanism(
        name="bounded_memory_attention",
        config=Config,
        symbolic=("B", "T", "H"),
        static=("D", "E", "N"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.bounded_memory_attention.expression:forward",
        reference=reference.forward,
        representative={"B": 2, "T": 1024, "H": 4, "D": 64, "E": 64, "N": 32},
        step=step_config,
        tiles=lambda config: (config.chunk,),
    )
)
