"""The public operators of linear attention: the parallel form and the decoding step."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from tilegen import settings
from tilegen.errors import ArgumentError
from tilegen.ops.linear_attention import MECHANISM, Config
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, require_position, state_fields
from tilegen.torch.packing import tables

_call = operator(MECHANISM)


class LinearAttentionState(NamedTuple):
    """The past of a normalised causal linear attention.

    S : [B, H, D, E], the decayed sum of k^T v.
    z : [B, H, D], the decayed sum of k.

    Both are float32, or float64 beside float64 arguments.  Without ``normalize`` there is no z, and the state is the tensor S.
    """

    S: Tensor
    z: Tensor


State = Tensor | LinearAttentionState


class Options(TypedDict, total=False):
    """Keyword arguments of `linear_attention`, for type checkers."""

    causal: bool
    scale: float | None
    decay: Tensor | None
    normalize: bool
    initial_state: State | None
    cu_seqlens: Tensor | None
    chunk: int


def linear_attention_init_state(
    batch: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> State:
    """The state of an empty past: zeros.

    Parameters
    ----------
    dtype : of q, k and v; the state is float64 for float64 and float32 otherwise.

    Returns
    -------
    S [B, H, D, E], or with `normalize` a `LinearAttentionState` (S, z).
    """
    acc = acc_dtype(dtype)
    S = torch.zeros(batch, heads, key_dim, value_dim, dtype=acc, device=device)
    return LinearAttentionState(S, S.new_zeros(batch, heads, key_dim)) if normalize else S


@overload
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...


@overload
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, State]: ...


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    decay: Tensor | None = None,
    normalize: bool = False,
    initial_state: State | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, State]:
    """Linear attention: attention without its softmax, in linear time.

    ::

        S_t = exp(g_t) S_{t-1} + k_t^T v_t        o_t = scale q_t S_t
        z_t = exp(g_t) z_{t-1} + k_t              o_t = q_t S_t / (q_t z_t)         with `normalize`

    when causal; otherwise every position sees the S and z of the whole sequence.  Differentiable once, in all tensors.

    Parameters
    ----------
    q, k : [B, T, H, D]; v : [B, T, H, E], one floating dtype (float16, bfloat16, float32, float64); any T >= 1, any strides,
        D and E need not be equal.  A feature map, if there is one, is applied by the caller.
    causal : position i sees j <= i only.
    scale : factor of q k^T, D^-1/2 by default; cancels with `normalize`.
    decay : g <= 0, the logarithm of what each step leaves of the state: [H], one a head, or [B, T, H]; float32 (float64 beside
        float64 arguments); causal only.  The state before position 0 is decayed by g_0.
    normalize : divide each row by the sum of its weights, which a positive feature map keeps positive; a row whose weights sum
        to 0 is 0, and has no gradient.
    initial_state : the past that comes before position 0: S [B, H, D, E], with `normalize` the pair of S and z [B, H, D];
        causal only.
    return_state : also return the state after position T - 1; causal only.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T); B is 1 then, and states have S in its place.
    chunk : positions computed as one tile.  It changes rounding and speed only; each value is compiled once.

    Returns
    -------
    o [B, T, H, E] in the dtype of q; with `return_state` the pair (o, state).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.  That the decay is not positive is checked with
        ``TILEGEN_DEBUG=1`` only.

    Notes
    -----
    The attention of CHELA (Liu et al., 2024), tiled as in Lightning Attention-2 (Qin et al., 2024).  Sums and states are kept
    in float32 (float64 for float64).  Decays per token are summed over a chunk and subtracted again: in float32 a weight is
    exact to 6e-8 times the largest such sum.  Decays below -110 (-750 in float64), -inf included, count as that, which leaves
    nothing of the past and has no gradient.
    """
    if decay is not None:
        _check_decay("decay", decay, (1, 3), "[H] or [B, T, H]")
    kind: Literal["none", "head", "token"] = "none" if decay is None else "head" if decay.dim() == 1 else "token"
    config = Config(causal, scale, kind, normalize, initial_state is not None, return_state, chunk, cu_seqlens is not None)
    tensors = {"q": q, "k": k, "v": v} | ({} if decay is None else {"decay": decay})
    if initial_state is not None:
        tensors |= _fields("initial_state", initial_state, normalize)
    if cu_seqlens is not None:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "q", q) | tensors
    o, *state = _call(config, tensors)
    return (o, _state(state)) if return_state else o


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    scale: float | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, State]:
    """One decoding step: the next row of causal `linear_attention`, and the state after it.

    Parameters
    ----------
    q, k : [B, H, D]; v : [B, H, E], one floating dtype.
    state : from `linear_attention_init_state`, an earlier step, or ``linear_attention(..., return_state=True)``: S [B, H, D, E],
        or the pair (S, z) when rows are normalised.
    scale : as in the parallel form.
    decay : [H] or [B, H], as in the parallel form.

    Returns
    -------
    o [B, H, E] in the dtype of q, and the new state; `state` itself is left as it was.
    """
    normalize = not isinstance(state, Tensor)
    fields = _fields("state", state, normalize)
    require_position("linear_attention", "[B, H, X]", q=q, k=k, v=v)
    tensors = {"q": q.unsqueeze(1), "k": k.unsqueeze(1), "v": v.unsqueeze(1)}
    kind: Literal["none", "head", "token"] = "none"
    if decay is not None:
        _check_decay("decay", decay, (1, 2), "[H] or [B, H]")
        kind = "head" if decay.dim() == 1 else "token"
        tensors["decay"] = decay if kind == "head" else decay.unsqueeze(1)
    config = Config(True, scale, kind, normalize, initial_state=True, return_state=True, chunk=1)
    o, *after = _call(config, tensors | fields)
    return o.squeeze(1), _state(after)


def _state(tensors: list[Tensor]) -> State:
    return tensors[0] if len(tensors) == 1 else LinearAttentionState(*tensors)


def _fields(name: str, state: State, normalize: bool) -> dict[str, Tensor]:
    """The tensors of a state by argument name."""
    if normalize:
        form = "a LinearAttentionState (S, z) with normalize=True"
        return state_fields(name, state, ("S", "z"), form, "linear_attention_init_state(..., normalize=True)")
    if not isinstance(state, Tensor):
        raise ArgumentError(
            f"{name} is a {type(state).__name__}, must be a tensor S [B, H, D, E] with normalize=False; make one with "
            "linear_attention_init_state"
        )
    return {"S": state}


def _check_decay(name: str, decay: Tensor, dims: tuple[int, int], form: str) -> None:
    """What tells the two kinds of decay apart, and in debug mode its sign."""
    if not isinstance(decay, Tensor) or decay.dim() not in dims:
        what = f"has shape {list(decay.shape)}" if isinstance(decay, Tensor) else f"is a {type(decay).__name__}"
        raise ArgumentError(f"{name} {what}, must be a tensor {form}: the logarithm of what a step leaves of the state")
    if settings.debug() and bool((decay > 0).any()):
        raise ArgumentError(f"{name} has values above 0, up to {decay.max().item()}; it is a logarithm: pass log(g) with g <= 1")
