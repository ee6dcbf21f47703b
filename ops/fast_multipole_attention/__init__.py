"""Fast multipole attention: near keys exactly, far keys as learned summaries that grow coarser with distance.

``expression.py`` is the mathematics, ``step.py`` its decoding step, ``reference.py`` the dense masked statement in plain
PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Instance, Mechanism, register
from tilegen.ops.fast_multipole_attention import reference
from tilegen.options import finite_scale, require_bools, require_direction

MAX_LEVELS = 20
"""Beyond this, no sequence fits the 32 bits in which compiled code counts elements."""

SLOTS = 4
"""Groups of a level in a decoding state: those of the pair before the current one, and of the current pair."""


@dataclass(frozen=True)
class Config:
    """The static options.

    block : tokens m of a fine block, which is also a group of level 1.
    rank : summaries p of a group.
    levels : coarse levels L that are built; sequences may have up to m 2^(L+1) tokens.
    learned : summaries are weighted sums with a bias, else means of p equal parts of the group.
    causal : position i sees j <= i only.
    count_bias : the logit of a summary gets log(tokens of the group / p) added.
    phantom_keys : the neighbours that the first blocks lack take part as keys and values of zeros.
    scale : factor of the logits; None is D^-0.5.
    return_state : hand back the state from which decoding goes on.
    step : one decoding step.
    packed : several sequences in one row, each with groups of its own.
    """

    block: int = 64
    rank: int = 4
    levels: int = 6
    learned: bool = False
    causal: bool = True
    count_bias: bool = False
    phantom_keys: bool = False
    scale: float | None = None
    return_state: bool = False
    step: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("block", 1, None), ("rank", 1, None), ("levels", 0, MAX_LEVELS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
                bounds = f"of at least {least}" if most is None else f"between {least} and {most}"
                raise ArgumentError(f"{name} is {value!r}, must be an integer {bounds}")
        require_bools(self, "learned", "causal", "count_bias", "phantom_keys", "return_state", "step", "packed")
        object.__setattr__(self, "scale", finite_scale(self.scale, "D^-0.5"))
        if not self.learned and self.block % self.rank:
            raise ArgumentError(
                f"rank is {self.rank}, must divide block = {self.block} when groups are averaged; choose another rank or pass "
                "pooling weights"
            )
        require_direction(self, "phantom_keys", "return_state", "step", reason="which has no such thing")

    def width(self, level: int) -> int:
        """Tokens w_l of a group of a level, counted from 1."""
        return self.block << (level - 1)

    @property
    def capacity(self) -> int:
        """The most tokens a sequence may have."""
        return self.block << (self.levels + 1)


ROWS = ("B", "T", "H", "D")


def weight_specs(config: Config) -> tuple[ArgSpec, ...]:
    """For K and for V the weights [D, P, w_l] and the biases [D, P] of every level."""
    if not config.learned:
        return ()
    specs = []
    for name in "kv":
        for level in range(1, config.levels + 1):
            specs.append(ArgSpec(f"w{name}{level}", ("D", config.rank, config.width(level))))
            specs.append(ArgSpec(f"b{name}{level}", ("D", config.rank)))
    return tuple(specs)


def state_specs(config: Config, suffix: str = "") -> tuple[ArgSpec, ...]:
    """The keys and values of two fine blocks, sums of four groups a level, and the number of tokens so far."""
    near = ("B", "H", 2 * config.block, "D")
    far = ("B", "H", config.levels, SLOTS, config.rank, "D")
    sums = [ArgSpec(f"far_{name}{suffix}", far, "acc") for name in "kv"] if config.levels else []
    return (
        *[ArgSpec(f"near_{name}{suffix}", near) for name in "kv"],
        *sums,
        ArgSpec("position" + suffix, ("B",), "int32", differentiable=False),
    )


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """q, k, v, then pooling weights if they are learned, then the state of a step."""
    rows = tuple(ArgSpec(name, ROWS) for name in "qkv")
    return rows + weight_specs(config) + (state_specs(config) if config.step else ())


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """y, then the state when it is wanted."""
    y = (ArgSpec("y", ROWS),)
    return y + state_specs(config, "_out") if config.return_state or config.step else y


def step_config(config: Config) -> Config | None:
    """The config of one decoding step (T = 1); the bidirectional form has none."""
    return dataclasses.replace(config, step=True, return_state=True, packed=False) if config.causal else None


def saved(instance: Instance) -> tuple[str, ...] | None:
    """The summaries, which the backward reads as the forward does, and the statistics of the softmax."""
    config = instance.config
    if config.step or config.packed:
        return None
    what = "summary" if instance.dtype in ("float16", "bfloat16") else "sum"  # one is the other, narrower
    return (*(f"{name}_{what}{level}" for name in "kv" for level in range(1, config.levels + 1)), "top", "share")


MECHANISM = register(
    Mechanism(
        name="fast_multipole_attention",
        config=Config,
        symbolic=("B", "T", "H"),
        static=("D",),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.fast_multipole_attention.expression:forward",
        reference=reference.forward,
        representative={"B": 1, "T": 2048, "H": 4, "D": 64},
        step=step_config,
        saved=saved,
        tiles=lambda config: (config.block, *(config.width(level) for level in range(1, config.levels + 1))),
    )
)
