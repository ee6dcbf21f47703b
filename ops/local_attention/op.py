"""The public operators of local attention: the parallel form and the decoding step."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.local_attention import MECHANISM, STEP_CHUNK, Config, relative
from tilegen.ops.local_attention.reference import rotary
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, described, require_position, state_fields, widened
from tilegen.torch.packing import tables

_call = operator(MECHANISM)

WIDEST = 128
"""Values wider than this are cut into heads: the keys of a window and twice as many values fill the memory next to a core."""


class LocalAttentionState(NamedTuple):
    """The past of a causal local attention: the last w keys and values, oldest first.

    k : [B, w, H, D]; v : [B, w, H, E], in the dtype of the arguments (k turned already where rotary positions are given).
    held : [B] int32, how many of them exist; they are the last ones.
    positions : [B, w] int32, theirs, where biases go by positions.
    """

    k: Tensor
    v: Tensor
    held: Tensor
    positions: Tensor | None = None


def local_attention_init_state(
    batch: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    window: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    positions: bool = False,
) -> LocalAttentionState:
    """The state of an empty past, for arguments of `dtype`; with `positions` for biases by them."""
    Config(window)
    acc_dtype(dtype)  # states are in the dtype of the arguments, which must be one that sums can be kept beside
    k, v = (torch.zeros(batch, window, heads, dim, dtype=dtype, device=device) for dim in (key_dim, value_dim))
    held = torch.zeros(batch, dtype=torch.int32, device=device)
    return LocalAttentionState(k, v, held, held.new_zeros(batch, window) if positions else None)


@overload
def local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, kind: str = "softmax", causal: bool = True, scale: float | None = None,
    bias: Tensor | None = None, bias_positions: Tensor | None = None, positions: Tensor | None = None,
    initial_state: LocalAttentionState | None = None, lengths: Tensor | None = None, return_state: Literal[False] = False,
    cu_seqlens: Tensor | None = None, chunk: int = 64,
) -> Tensor: ...  # fmt: skip


@overload
def local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, kind: str = "softmax", causal: bool = True, scale: float | None = None,
    bias: Tensor | None = None, bias_positions: Tensor | None = None, positions: Tensor | None = None,
    initial_state: LocalAttentionState | None = None, lengths: Tensor | None = None, return_state: Literal[True],
    cu_seqlens: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, LocalAttentionState]: ...  # fmt: skip


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    kind: str = "softmax",
    causal: bool = True,
    scale: float | None = None,
    bias: Tensor | None = None,
    bias_positions: Tensor | None = None,
    positions: Tensor | None = None,
    initial_state: LocalAttentionState | None = None,
    return_state: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, LocalAttentionState]:
    """Attention within a sliding window: i sees j from i - w to i (causal) or to i + w::

        o_i = sum_j softmax_j(s_ij) v_j        or        sum_j relu(s_ij)^2 v_j        s_ij = scale q_i k_j + bias_{j-i}

    Differentiable once, in q, k, v, bias and the state.

    Parameters
    ----------
    q, k : [B, T, H, D]; v : [B, T, H, E], one floating dtype; any T >= 1 and any strides.
    window : w, positions seen on each side: w + 1 keys when causal, 2 w + 1 otherwise.
    kind : "softmax", or "relu2", which is not normalised.
    causal : position i sees none after itself.
    scale : by default D^-1/2 for softmax, 1 / w for relu2 (1 / 2w when not causal), before the square.
    bias : [H, w+1], or [H, 2w+1] when not causal; entry w + j - i is added to s_ij.  Kept in float32 (float64 beside float64).
    bias_positions : int32 or int64 [B, T], positions that tokens had before they were packed: biases go by the distance between these.
        `bias` is [H, M] then, for any M (odd when not causal); entry R + p_j - p_i is added to s_ij, R being the last entry, or the
        one in the middle when not causal.  Beyond the table's reach it is its first, or last, entry.
    positions : int32 or int64 [B, T]; q and k are turned by them (rotary, interleaved pairs, base 10^4).  D must be even.
    initial_state : the past that comes before position 0; causal only.
    return_state : also return the state after position T - 1; causal only.
    lengths : int32 [B], for sequences that end before T: positions from there on are not seen and give zeros; no states.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T); B is 1 then, and states have S in its place.
    chunk : queries of one tile, a choice of speed only.

    Returns
    -------
    o [B, T, H, E] in the dtype of q; with `return_state` the pair (o, state).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling" (SeqBoat), 2023.  Windows are predicates, not additive
    masks.  A NaN or infinity in k or v may spoil rows of its tile that do not see it.
    """
    given = {"bias": bias, "by_row": bias_positions, "initial_state": initial_state, "lengths": lengths}
    config = Config(
        window, kind, causal, scale, return_state=return_state, chunk=chunk, packed=cu_seqlens is not None,
        **{name: x is not None for name, x in given.items()},
    )  # fmt: skip
    if positions is not None:
        q, k = (_turned(name, x, positions) for name, x in (("q", q), ("k", k)))
    tensors: dict[str, Any] = {} if cu_seqlens is None else tables(MECHANISM.lengths(config), cu_seqlens, "q", q)
    tensors |= {"q": q, "k": k, "v": v}
    by_row = bias_positions is not None and isinstance(q, Tensor) and q.dim() == 4  # otherwise the check of arguments speaks
    fields = {} if initial_state is None else _fields("initial_state", initial_state, by_row)
    past = fields.pop("positions", None)
    if by_row:
        at, table = relative.check_positions("bias_positions", bias_positions, q), relative.check_table(bias, causal)
        tensors["bias"] = relative.rows(config, table, at, past, cu_seqlens, q)
    elif bias is not None:
        tensors["bias"] = widened(bias, q)
    if lengths is not None:
        tensors["lengths"] = lengths
    tensors |= fields
    heads = 1 if return_state or initial_state is not None else _heads_of_values(tensors)
    tensors = _spread(tensors, heads) if heads > 1 else tensors
    o, *state = _call(config, tensors)
    if heads > 1:
        o = o.unflatten(2, (-1, heads)).flatten(3)
    if not return_state:
        return o
    after = None if not by_row else relative.last(window, at, past, cu_seqlens)
    return o, LocalAttentionState(*state, after)


def local_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LocalAttentionState,
    *,
    kind: str = "softmax",
    scale: float | None = None,
    bias: Tensor | None = None,
    bias_positions: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, LocalAttentionState]:
    """One decoding step: the next row of causal `local_attention`, and the state after it.

    Parameters
    ----------
    q, k : [B, H, D]; v : [B, H, E], one floating dtype.
    state : from `local_attention_init_state`, an earlier step, or ``local_attention(..., return_state=True)``; tells the window.
    kind, scale, bias : as in the parallel form.
    bias_positions, positions : [B], those of this token.

    Returns
    -------
    o [B, H, E] in the dtype of q, and the new state; `state` itself is left as it was.
    """
    require_position("local_attention", "[B, H, D]", q=q, k=k, v=v)
    window = _fields("state", state, bias_positions is not None)["k_past"].shape[1]
    row = lambda x: x.unsqueeze(1)
    at, bias_at = (row(x) if isinstance(x, Tensor) else x for x in (positions, bias_positions))
    o, after = local_attention(
        row(q), row(k), row(v), window=window, kind=kind, scale=scale, bias=bias, bias_positions=bias_at, positions=at,
        initial_state=state, return_state=True, chunk=STEP_CHUNK,
    )  # fmt: skip
    return o.squeeze(1), after


def _heads_of_values(tensors: dict[str, Any]) -> int:
    """Into how many heads the values of one are cut: no tile holds rows of any width, and weights serve every column alike."""
    q, k, v = (tensors[name] for name in ("q", "k", "v"))
    if not all(isinstance(x, Tensor) and x.dim() == 4 for x in (q, k, v)) or v.shape[3] <= WIDEST:
        return 1
    return next((n for n in range(-(-v.shape[3] // WIDEST), v.shape[3] // 8 + 1) if v.shape[3] % (8 * n) == 0), 1)


def _spread(tensors: dict[str, Any], heads: int) -> dict[str, Any]:
    """The arguments with `heads` heads for each: queries, keys and biases again, values cut."""
    again = lambda x: x.unsqueeze(3).expand(-1, -1, -1, heads, -1).flatten(2, 3)  # noqa: E731
    found = tensors | {name: again(tensors[name]) for name in ("q", "k")}
    found["v"] = tensors["v"].unflatten(3, (heads, -1)).flatten(2, 3)
    if "bias" in tensors:
        found["bias"] = tensors["bias"].repeat_interleave(heads, tensors["bias"].dim() - 2)
    return found


def _turned(name: str, x: Any, positions: Any) -> Any:
    """`x` with rotary positions, where both have the right form."""
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        return x  # the check of arguments will say so
    relative.check_positions("positions", positions, x)
    if x.shape[3] % 2:
        raise ArgumentError(f"{name} has D = {x.shape[3]}, must be even with positions: pairs are turned; pad {name} with zeros")
    return rotary(x, positions)


def _fields(name: str, state: Any, positions: bool) -> dict[str, Tensor]:
    """The tensors of a state by argument name; with `positions` those of its keys too."""
    form = "a LocalAttentionState (k [B, w, H, D], v, held" + (", positions)" if positions else ")")
    names = ("k_past", "v_past", "count", "positions")
    whole = (*state, None) if isinstance(state, tuple) and len(state) == len(names) - 1 else state
    fields = state_fields(name, whole, names, form, "local_attention_init_state")
    if not isinstance(fields["k_past"], Tensor) or fields["k_past"].dim() != 4:
        raise ArgumentError(
            f"{name}.k has {described(fields['k_past'])}, must be a tensor [B, w, H, D]; make one with local_attention_init_state"
        )
    at = fields.pop("positions")
    if not positions:
        return fields
    want = fields["k_past"].shape[:2]
    if not isinstance(at, Tensor) or at.dtype is not torch.int32 or at.shape != want:
        raise ArgumentError(
            f"{name}.positions has {described(at)}, must be int32 [B, w] = {list(want)} with bias_positions; make one with "
            "local_attention_init_state(..., positions=True)"
        )
    return fields | {"positions": at}
