"""Element-wise attention: every channel attends alone, with similarity minus the squared distance.

``expression.py`` is the mathematics, ``reference.py`` the same in plain PyTorch, ``op.py`` what users call.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ArgSpec, Mechanism, register
from tilegen.ops.elementwise_attention import reference
from tilegen.options import require_bools


@dataclass(frozen=True)
class Config:
    """The static options.

    order : even degree t >= 2 of the Taylor polynomial that stands for exp(c2 q k).
    causal : position i sees j <= i only.
    stabilise : shift the exponents by the running minimum of k^2, which cancels in the output.
    c2 : factor of q k in the expanded exponent; 2 is the plain square (q - k)^2.
    initial_state, return_state : continue from, and hand back, the moments of the past; causal only.
    exact : exp(c2 q k) itself, in O(T^2); order and stabilise have no effect, and there is no state.
    packed : several sequences in one row; not exact.
    """

    order: int = 6
    causal: bool = True
    stabilise: bool = True
    c2: float = 2.0
    initial_state: bool = False
    return_state: bool = False
    exact: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        order, c2 = self.order, self.c2
        if isinstance(order, bool) or not isinstance(order, int) or order < 2 or order % 2:
            raise ArgumentError(
                f"order is {order!r}, must be an even integer of at least 2: a polynomial of odd degree has a real root, "
                "where the denominator vanishes; use the even order above it"
            )
        require_bools(self, "causal", "stabilise", "initial_state", "return_state", "exact", "packed")
        if isinstance(c2, bool) or not isinstance(c2, (int, float)) or not 0 < c2 < math.inf:
            raise ArgumentError(f"c2 is {c2!r}, must be a finite number above 0; 2.0 is the plain squared distance")
        if (self.initial_state or self.return_state) and (self.exact or not self.causal):
            given = "initial_state" if self.initial_state else "return_state"
            other = "exact=True" if self.exact else "causal=False"
            raise ArgumentError(f"{given} is set with {other}, which has no state of fixed size; drop one of the two")
        if self.packed and self.exact:
            raise ArgumentError(
                "cu_seqlens is given with exact=True, where every position meets every other one of its row; drop one of the two, or "
                "call it once for each sequence"
            )
        object.__setattr__(self, "c2", float(c2))


ROWS = ("B", "T", "C")


def state_specs(suffix: str = "") -> tuple[ArgSpec, ...]:
    """Moments A and B [B, C, t+1] and their exponent shift m [B, C], which is a constant for differentiation."""
    moments = ("B", "C", "order+1")
    return (
        ArgSpec("A" + suffix, moments, "acc"),
        ArgSpec("B" + suffix, moments, "acc"),
        ArgSpec("m" + suffix, ("B", "C"), "acc", differentiable=False, empty="largest"),
    )


def inputs(config: Config) -> tuple[ArgSpec, ...]:
    """q, k, v, then the initial state when there is one."""
    rows = tuple(ArgSpec(name, ROWS) for name in "qkv")
    return rows + state_specs() if config.initial_state else rows


def outputs(config: Config) -> tuple[ArgSpec, ...]:
    """y, then the final state when it is wanted."""
    y = (ArgSpec("y", ROWS),)
    return y + state_specs("_out") if config.return_state else y


def step_config(config: Config) -> Config | None:
    """The config whose forward at T = 1 is one decoding step; the exact and the bidirectional form have none."""
    if config.exact or not config.causal:
        return None
    return dataclasses.replace(config, initial_state=True, return_state=True, packed=False)


MECHANISM = register(
    Mechanism(
        name="elementwise_attention",
        config=Config,
        symbolic=("B", "T"),
        static=("C",),
        inputs=inputs,
        outputs=outputs,
        expression="tilegen.ops.elementwise_attention.expression:forward",
        reference=reference.forward,
        representative={"B": 4, "T": 2048, "C": 512},
        step=step_config,
        tiles=lambda config: (),
    )
)
