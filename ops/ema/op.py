"""The public operators of the multi-head damped EMA: the parallel form and the decoding step."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.ema import MECHANISM, Config
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, require_position, widened
from tilegen.torch.packing import tables

_call = operator(MECHANISM)


def ema_init_state(
    batch: int, channels: int, orders: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """The state of an empty past: zeros [B, C, N].

    Parameters
    ----------
    dtype : of x; the state is float64 for float64 and float32 otherwise.
    """
    return torch.zeros(batch, channels, orders, dtype=acc_dtype(dtype), device=device)


@overload
def ema(
    x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor, *,
    causal: bool = True, initial_state: Tensor | None = None, return_state: Literal[False] = False, cu_seqlens: Tensor | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def ema(
    x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor, *,
    causal: bool = True, initial_state: Tensor | None = None, return_state: Literal[True], cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def ema(
    x: Tensor,
    delta: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    *,
    causal: bool = True,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Multi-head damped exponential moving average of every channel, in linear time::

        p = sigma(delta)        q = 1 - p sigma(alpha)        h_t = q h_{t-1} + x_t
        y_t = N^-1/2 sum_n p_n beta_n gamma_n h_tn + omega x_t

    Differentiable once, in x, all parameters and the state.

    Parameters
    ----------
    x : [B, T, C] in float16, bfloat16, float32 or float64; any T >= 1 and any strides.
    delta, alpha, beta, gamma : [C, N], a channel's N averages; [2C, N] when not causal, where rows C.. belong to the averages
        that run from the end.  Any floating dtype; computed with in float32 (float64 beside float64).
    omega : [C], the direct path.
    causal : position i sees j <= i only.  Otherwise both directions are added, and the position itself counts in both.
    initial_state : h before position 0, [B, C, N], float32 (float64 beside float64); causal only.
    return_state : also return h after position T - 1; causal only.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T); B is 1 then, and states have S in its place.

    Returns
    -------
    y [B, T, C] in the dtype of x; with `return_state` the pair (y, h).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Ma et al., "Mega: Moving Average Equipped Gated Attention", 2022, as SeqBoat uses it (Ren et al., 2023).  Their h carries a
    factor p beta, which here is in the output, so that a state does not depend on it.  A scan, not an FFT: the powers q^l of long
    lags are never formed and cannot underflow into wrong gradients; q = 0 and q = 1 are fine.
    """
    config = Config(causal, initial_state is not None, return_state, cu_seqlens is not None)
    parameters = {"delta": delta, "alpha": alpha, "beta": beta, "gamma": gamma, "omega": omega}
    tensors: dict[str, Any] = {"x": x} | {name: widened(parameter, x) for name, parameter in parameters.items()}
    if initial_state is not None:
        tensors["h"] = initial_state
    if cu_seqlens is not None:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "x", x) | tensors
    y, *state = _call(config, tensors)
    return (y, state[0]) if return_state else y


def ema_step(
    x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One decoding step: the next row of causal `ema`, and the state after it.

    Parameters
    ----------
    x : [B, C], one floating dtype; parameters as in `ema`.
    state : [B, C, N] from `ema_init_state`, an earlier step, or ``ema(..., return_state=True)``.

    Returns
    -------
    y [B, C] in the dtype of x, and the new state; `state` itself is left as it was.
    """
    require_position("ema", "[B, C]", x=x)
    if not isinstance(state, Tensor):
        raise ArgumentError(f"state is a {type(state).__name__}, must be a tensor [B, C, N]; make one with ema_init_state")
    y, after = ema(x.unsqueeze(1), delta, alpha, beta, gamma, omega, initial_state=state, return_state=True)
    return y.squeeze(1), after
