"""The public operators of element-wise attention: the parallel form and the decoding step."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.elementwise_attention import MECHANISM, Config
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, require_position, state_fields
from tilegen.torch.packing import tables

_call = operator(MECHANISM)


class ElementwiseAttentionState(NamedTuple):
    """The past of a causal element-wise attention: 2 t + 3 numbers a channel, whatever its length.

    A : [B, C, t+1], sum over the past of exp(m - k^2) k^n v, n = 0..t.
    B : [B, C, t+1], the same without v.
    m : [B, C], the running minimum of k^2 (0 with ``stabilise=False``), a constant for differentiation.

    All three are float32, or float64 beside float64 arguments.  Only A exp(-m) and B exp(-m) have a meaning; the shift keeps
    both in range.  Being tensors only, a state is saved with `torch.save` and moved with ``.to``, field by field.
    """

    A: Tensor
    B: Tensor
    m: Tensor


class Options(TypedDict, total=False):
    """Keyword arguments of `elementwise_attention`, for type checkers."""

    order: int
    causal: bool
    stabilise: bool
    c2: float
    exact: bool
    initial_state: ElementwiseAttentionState | None
    cu_seqlens: Tensor | None


def elementwise_attention_init_state(
    batch: int, channels: int, *, order: int = 6, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ElementwiseAttentionState:
    """The state of an empty past.

    A and B are 0 and m is the largest finite number of its dtype: any k^2 is below it, and unlike infinity it has no undefined
    differences.

    Parameters
    ----------
    dtype : of q, k and v; the state is float64 for float64 and float32 otherwise.
    """
    Config(order=order)
    acc = acc_dtype(dtype)
    A = torch.zeros(batch, channels, order + 1, dtype=acc, device=device)
    m = torch.full((batch, channels), torch.finfo(acc).max, dtype=acc, device=device)
    return ElementwiseAttentionState(A, torch.zeros_like(A), m)


@overload
def elementwise_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...


@overload
def elementwise_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, ElementwiseAttentionState]: ...


def elementwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    order: int = 6,
    causal: bool = True,
    stabilise: bool = True,
    c2: float = 2.0,
    exact: bool = False,
    initial_state: ElementwiseAttentionState | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, ElementwiseAttentionState]:
    """Element-wise attention: each channel attends alone, with weights exp(-(q - k)^2), in linear time.

    ::

        y_i = sum_j w_ij v_j / sum_j w_ij        w_ij = exp(-k_j^2) P_t(c2 q_i k_j)        P_t(x) = sum_{n<=t} x^n / n!

    over j <= i when causal, over all j otherwise.  Differentiable once, in q, k, v and in A and B of the state.

    Parameters
    ----------
    q, k, v : [B, T, C], one floating dtype (float16, bfloat16, float32, float64); any T >= 1 and any strides.
    order : the even degree t of P_t.  P_6 is within 10 % of exp where c2 q k is between -1.9 and 3.9; keep q and k of order 1.
    causal : position i sees j <= i only.
    stabilise : shift exponents by the running minimum of k^2 (the minimum over T when not causal), which cancels in y; without
        it a prefix whose keys are all beyond 9.3 in float32 gives 0/0 = NaN.
    c2 : 2 is the plain squared distance, 1 half of it.
    exact : exp(c2 q k) itself instead of P_t, in time O(T^2): the definition, for small T; has no state.
    initial_state : the past that comes before position 0; causal only.
    return_state : also return the state after position T - 1; causal only.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T); B is 1 then, and states have S in its place.  Not
        with `exact`.

    Returns
    -------
    y [B, T, C] in the dtype of q; with `return_state` the pair (y, state).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Feng, "Element-wise Attention Is All You Need", 2025.  Whether the paper's exponent carries the 2 is not known, hence `c2`.
    Sums and states are kept in float32 (float64 for float64).  A NaN or infinity in q spoils its own element of y only.
    """
    config = Config(order, causal, stabilise, c2, initial_state is not None, return_state, exact, cu_seqlens is not None)
    tensors = {"q": q, "k": k, "v": v}
    if initial_state is not None:
        tensors |= _fields("initial_state", initial_state)
    if cu_seqlens is not None:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "q", q) | tensors
    y, *state = _call(config, tensors)
    return (y, ElementwiseAttentionState(*state)) if return_state else y


def elementwise_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: ElementwiseAttentionState,
    *,
    stabilise: bool = True,
    c2: float = 2.0,
) -> tuple[Tensor, ElementwiseAttentionState]:
    """One decoding step: the next row of causal `elementwise_attention`, and the state after it.

    Parameters
    ----------
    q, k, v : [B, C], one floating dtype.
    state : from `elementwise_attention_init_state`, an earlier step, or ``elementwise_attention(..., return_state=True)``; its
        last dim tells the order.
    stabilise, c2 : as in the parallel form that made the state.

    Returns
    -------
    y [B, C] in the dtype of q, and the new state; `state` itself is left as it was.
    """
    fields = _fields("state", state)
    require_position("elementwise_attention", "[B, C]", q=q, k=k, v=v)
    if not isinstance(state.A, Tensor) or state.A.dim() != 3:
        raise ArgumentError("state.A must be a tensor [B, C, t+1]; make a state with elementwise_attention_init_state")
    config = Config(order=state.A.shape[2] - 1, stabilise=stabilise, c2=c2, initial_state=True, return_state=True)
    y, *after = _call(config, {"q": q.unsqueeze(1), "k": k.unsqueeze(1), "v": v.unsqueeze(1)} | fields)
    return y.squeeze(1), ElementwiseAttentionState(*after)


def _fields(name: str, state: ElementwiseAttentionState) -> dict[str, Tensor]:
    """The tensors of a state by argument name; any triple of tensors will do."""
    form = "an ElementwiseAttentionState (A, B, m)"
    return state_fields(name, state, ("A", "B", "m"), form, "elementwise_attention_init_state")
