"""Local attention: every position attends to the keys of a sliding window.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.local_attention import reference
from tilegen.options import finite_scale, require_bools, require_direction, require_integer

KINDS = ("softmax", "relu2")
STEP_CHUNK = 2
"""Queries of a tile of the decoding step, the least there is."""


@dataclass(frozen=True)
class Config:
    """The static options.

    window : positions that are seen on each side: w + 1 keys when causal, 2 w + 1 otherwise.
    kind : "softmax", or "relu2" for relu(logit)^2, which is not normalised.
    causal : position i sees none after itself.
    scale : factor of q k; by default D^-1/2 for softmax, and 1 / w for relu2 (1 / 2w when not causal).
    bias : whether biases are added to the logits: a table by relative position.
    by_row : whether every row has a table of its own, as relative positions before packing give it.
    initial_state, return_state : continue from, and hand back, the last w keys and values; causal only.
    lengths : whether every sequence has a length of its own, beyond which nothing is seen and results are zero.
    chunk : queries of one tile.
    packed : several sequences in one row.
    """

    window: int
    kind: str = "softmax"
    causal: bool = True
    scale: float | None = None
    bias: bool = False
    by_row: bool = False
    initial_state: bool = False
    return_state: bool = False
    lengths: bool = False
    chunk: int = 64
    packed: bool = False

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("chunk", STEP_CHUNK)):
            require_integer(name, getattr(self, name), least)
        if self.kind not in KINDS:
            raise ArgumentError(f"kind is {self.kind!r}, must be 'softmax' or 'relu2'")
        require_bools(self, "causal", "bias", "by_row", "initial_state", "return_state", "lengths", "packed")
        require_direction(self, "initial_state", "return_state", reason="which has no state of fixed size")
        for name in ("initial_state", "return_state"):
            if getattr(self, name) and self.lengths:
                raise ArgumentError(f"{name} is set with lengths, after which a state would not follow; drop one of the two")
        if self.packed and self.lengths:
            raise ArgumentError("lengths is given with cu_seqlens, which tells the lengths already; drop one of the two")
        if self.by_row and not self.bias:
            raise ArgumentError("bias_positions is given without bias; give the table of biases too, or drop bias_positions")
        object.__setattr__(self, "scale", finite_scale(self.scale, "the usual one"))

    @property
    def span(self) -> int:
        """Keys that a query sees at most."""
        return self.window + self.ahead + 1

    @property
    def ahead(self) -> int:
        """Positions that are seen after the query's own."""
        return 0 if self.causal else self.window

    def factor(self, key_dim: int) -> float:
        """The factor of q k."""
        if self.scale is not None:
            return self.scale
        return key_dim**-0.5 if self.kind == "softmax" else 1 / (self.window + self.ahead)


KEYS, VALUES = ("B", "T", "H", "D"), ("B", "T", "H", "E")


def state_specs(suffix: str = "") -> tuple[ArgSpec, ...]:
    """The last w keys and values, oldest first, and how many of them there are."""
    return (
        ArgSpec("k_past" + suffix, ("B", "window", "H", "D")),
        ArgSpec("v_past" + suffix, ("B", "window", "H", "E")),
        ArgSpec("count" + suffix, ("B",), "int32", differentiable=False),
    )


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """q, k, v, then the table of biases, the lengths and the initial state when there are such."""
    specs = [ArgSpec("q", KEYS), ArgSpec("k", KEYS), ArgSpec("v", VALUES)]
    if config.bias:
        span = "window+1" if config.causal else "2*window+1"
        specs.append(ArgSpec("bias", ("B", "T", "H", span) if config.by_row else ("H", span), "acc"))
    if config.lengths:
        specs.append(ArgSpec("lengths", ("B",), "int32", differentiable=False))
    return (*specs, *(state_specs() if config.initial_state else ()))


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """o, then the final state when it is wanted."""
    o = (ArgSpec("o", VALUES),)
    return o + state_specs("_out") if config.return_state else o


def step_config(config: Config) -> Config | None:
    """The config whose forward at T = 1 is one decoding step; the bidirectional form has none."""
    if not config.causal:
        return None
    return dataclasses.replace(config, initial_state=True, return_state=True, lengths=False, chunk=STEP_CHUNK, packed=False)


@dataclass(frozen=True)
class LookupConfig:
    """`relative_bias` has no options."""


def lookup_inputs(config: LookupConfig) -> tuple[ArgSpec, ...]:
    """The table, and which of its entries belongs to every pair of a row and a key."""
    return ArgSpec("table", ("H", "M")), ArgSpec("entry", ("R", "P"), "int32", differentiable=False)


def lookup_outputs(config: LookupConfig) -> tuple[ArgSpec, ...]:
    """The biases of all pairs."""
    return (ArgSpec("rows", ("R", "H", "P")),)


LOOKUP = register(
    Mechanism(
        name="relative_bias",
        config=LookupConfig,
        symbolic=("H", "R"),
        static=("M", "P"),
        inputs=lookup_inputs,
        outputs=lookup_outputs,
        expression="tilegen.ops.local_attention.expression:lookup",
        reference=reference.lookup,
        representative={"H": 1, "R": 4096, "M": 1024, "P": 129},
    )
)

MECHANISM = register(
    Mechanism(
        name="local_attention",
        config=Config,
        symbolic=("B", "T", "H"),
        static=("D", "E"),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.local_attention.expression:forward",
        reference=reference.forward,
        representative={"B": 2, "T": 2048, "H": 8, "D": 64, "E": 64},
        step=step_config,
        tiles=lambda config: (config.chunk,),
    )
)
