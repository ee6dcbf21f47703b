"""The public operators of attention with bounded-memory control: the parallel form and the decoding step."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ACC
from tilegen.ops.bounded_memory_attention import MECHANISM, Config
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, require_position, state_fields
from tilegen.torch.packing import tables
from tilegen.torch.signature import NAMES

_call = operator(MECHANISM)

Kind = Literal["running", "fixed", "none"]


class BoundedMemoryState(NamedTuple):
    """The past of a causal attention with bounded memory: N (D + E + 1) numbers a head, whatever its length.

    K : [B, H, N, D], the keys in the slots.
    V : [B, H, N, E], the values in the slots.
    z : [B, H, N], the logarithm of the sum of exp(s) so far, -inf for an empty slot; None with ``normalizer="none"``.

    All are float32, or float64 beside float64 arguments.
    """

    K: Tensor
    V: Tensor
    z: Tensor | None


class Options(TypedDict, total=False):
    """Keyword arguments of `bounded_memory_attention`, for type checkers."""

    normalizer: Kind
    causal: bool
    scale: float | None
    initial_state: BoundedMemoryState | None
    cu_seqlens: Tensor | None
    chunk: int


def bounded_memory_attention_init_state(
    batch: int,
    heads: int,
    slots: int,
    key_dim: int,
    value_dim: int,
    *,
    normalizer: Kind = "running",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> BoundedMemoryState:
    """The state of an empty past: zeros, and z = -inf.

    Parameters
    ----------
    dtype : of q, k and v; the state is float64 for float64 and float32 otherwise.
    """
    Config(normalizer=normalizer)
    acc = acc_dtype(dtype)
    K = torch.zeros(batch, heads, slots, key_dim, dtype=acc, device=device)
    z = None if normalizer == "none" else K.new_full((batch, heads, slots), -math.inf)
    return BoundedMemoryState(K, K.new_zeros(batch, heads, slots, value_dim), z)


@overload
def bounded_memory_attention(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, return_state: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...


@overload
def bounded_memory_attention(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, return_state: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, BoundedMemoryState]: ...


def bounded_memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    *,
    normalizer: Kind = "running",
    causal: bool = True,
    scale: float | None = None,
    initial_state: BoundedMemoryState | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk: int = 32,
) -> Tensor | tuple[Tensor, BoundedMemoryState]:
    """Attention with bounded-memory control: softmax attention to N slots that control weights fill, in linear time.

    ::

        K_i = sum_j w_ij (x) k_j        V_i = sum_j w_ij (x) v_j        o_i = softmax(scale K_i q_i) V_i

    over j <= i when causal, over all j otherwise.  Differentiable once, in all arguments and all of the state.

    Parameters
    ----------
    q, k : [B, T, H, D]; v : [B, T, H, E], one floating dtype (float16, bfloat16, float32, float64); any T >= 1.
    s : [B, T, H, N], what each token writes to each slot; in the dtype of q or in float32 (`ops.control` makes it).
    normalizer : "running": w_ij = exp(s_j - z_i) with z_i = log sum_{j<=i} exp(s_j), a slot holds the running average of its
        tokens; "fixed": w_ij = exp(s_j - z_j), frozen at writing, the slots only grow; "none": w_ij = s_j.
        s = -inf writes nothing; a slot that nothing was written to takes no part in the softmax (with "none" it does, as zeros).
    causal : position i sees j <= i only.  Otherwise z is over the whole sequence, so that "fixed" is "running".
    scale : factor of the logits, D^-1/2 unless given.
    initial_state : the past that comes before position 0; causal only.
    return_state : also return the state after position T - 1; causal only.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T); B is 1 then, and states have S in its place.
    chunk : positions computed as one tile.  It changes rounding and speed only; each value is compiled once.  Where no gradient is
        wanted 64 is a quarter faster on large GPUs; with gradients it is far slower.

    Returns
    -------
    o [B, T, H, E] in the dtype of q; with `return_state` the pair (o, state).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Peng et al., "ABC: Attention with Bounded-memory Control", 2022.  "fixed" is the rule of the paper's causal ABC_MLP as far as
    we know it, "running" that of flash-linear-attention, whose state lacks z.  What is exponentiated is the distance of s from the
    largest s up to the first row of its chunk, or, in the rare rows up to which s climbs by more than 39 (8 in float16), up to
    the row itself: s may be of any size, and a row's bits depend on nothing that comes later.  Sums and states are kept in
    float32 (float64 for float64).
    """
    packed = cu_seqlens is not None
    config = Config(normalizer, causal, scale, initial_state is not None, return_state, _acc_control(q, s), chunk, packed)
    tensors = {"q": q, "k": k, "v": v, "s": s}
    if initial_state is not None:
        tensors |= _fields("initial_state", initial_state, normalizer)
    if packed:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "q", q) | tensors
    o, *state = _call(config, tensors)
    return (o, _state(state)) if return_state else o


def bounded_memory_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    state: BoundedMemoryState,
    *,
    normalizer: Kind = "running",
    scale: float | None = None,
) -> tuple[Tensor, BoundedMemoryState]:
    """One decoding step: the next row of causal `bounded_memory_attention`, and the state after it.

    Parameters
    ----------
    q, k : [B, H, D]; v : [B, H, E]; s : [B, H, N].
    state : from `bounded_memory_attention_init_state`, an earlier step, or ``bounded_memory_attention(..., return_state=True)``.
    normalizer, scale : as in the parallel form that made the state.

    Returns
    -------
    o [B, H, E] in the dtype of q, and the new state; `state` itself is left as it was.
    """
    fields = _fields("state", state, normalizer)
    rows = {"q": q, "k": k, "v": v, "s": s}
    require_position("bounded_memory_attention", "[B, H, X]", **rows)
    # The library that parts of a sequence use: one compiled instance serves both.
    config = Config(normalizer, True, scale, True, True, _acc_control(q, s))
    o, *after = _call(config, {name: x.unsqueeze(1) for name, x in rows.items()} | fields)
    return o.squeeze(1), _state(after)


def _acc_control(q: Tensor, s: Tensor) -> bool:
    """Whether s is float32 beside half precision."""
    if not isinstance(q, Tensor) or not isinstance(s, Tensor) or q.dtype == s.dtype:
        return False
    return NAMES.get(s.dtype) == ACC.get(NAMES.get(q.dtype, ""), "")


def _state(tensors: list[Tensor]) -> BoundedMemoryState:
    K, V, *z = tensors
    return BoundedMemoryState(K, V, z[0] if z else None)


def _fields(name: str, state: BoundedMemoryState, normalizer: str) -> dict[str, Tensor]:
    """The tensors of a state by argument name."""
    form = "a BoundedMemoryState (K, V, z)"
    fields = state_fields(name, state, ("K", "V", "z"), form, "bounded_memory_attention_init_state")
    z = fields["z"]
    if (z is None) != (normalizer == "none"):
        was = "None" if z is None else "a tensor"
        must = 'None with normalizer="none"' if normalizer == "none" else f"a tensor [B, H, N] with normalizer={normalizer!r}"
        raise ArgumentError(f"{name}.z is {was}, must be {must}; make the state with the same normalizer")
    return {key: x for key, x in fields.items() if x is not None}
