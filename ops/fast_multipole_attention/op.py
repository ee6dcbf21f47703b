"""The public operators of fast multipole attention: the parallel form and the decoding step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.fast_multipole_attention import MECHANISM, SLOTS, Config
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, described, require_position
from tilegen.torch.packing import longest_in_debug, tables

_call = operator(MECHANISM)


class FastMultipoleAttentionState(NamedTuple):
    """The past of a causal fast multipole attention: 2 (2 m + 4 L p) D numbers a head, whatever its length.

    near_k, near_v : [B, H, 2m, D], keys and values of the block before the last token's and of that block, zeros where there is
        no token yet; in the dtype of q.
    far_k, far_v : [B, H, L, 4, p, D], at every level the sums of the two groups before the last token's pair of groups and of the
        two in it, without bias and not divided; float32, or float64 beside float64 arguments.
    position : [B] int32, the number of tokens so far.

    Being tensors only, a state is saved with `torch.save` and moved with ``.to``, field by field.
    """

    near_k: Tensor
    near_v: Tensor
    far_k: Tensor
    far_v: Tensor
    position: Tensor


class Weights(TypedDict, total=False):
    """Pooling weights as keyword arguments, for type checkers."""

    k_weights: Sequence[Tensor] | None
    v_weights: Sequence[Tensor] | None
    k_biases: Sequence[Tensor] | None
    v_biases: Sequence[Tensor] | None


class Options(Weights, total=False):
    """Keyword arguments of `fast_multipole_attention`, for type checkers."""

    block: int
    rank: int
    levels: int | None
    causal: bool
    count_bias: bool
    phantom_keys: bool
    scale: float | None
    cu_seqlens: Tensor | None


def fast_multipole_attention_levels(length: int, block: int = 64) -> int:
    """The levels that a sequence of `length` tokens needs: max(0, ceil(log2(length / block)) - 1)."""
    levels = 0
    while block << (levels + 1) < length:
        levels += 1
    return levels


def fast_multipole_attention_init_state(
    batch: int,
    heads: int,
    dim: int,
    *,
    levels: int,
    block: int = 64,
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FastMultipoleAttentionState:
    """The state of an empty past: zeros.

    Parameters
    ----------
    dim : of a head.
    levels, block, rank : as in the parallel form; up to block 2^(levels + 1) tokens can follow.
    dtype : of q, k and v.
    """
    Config(block=block, rank=rank, levels=levels, learned=True)
    acc = acc_dtype(dtype)
    near = torch.zeros(batch, heads, 2 * block, dim, dtype=dtype, device=device)
    far = torch.zeros(batch, heads, levels, SLOTS, rank, dim, dtype=acc, device=device)
    position = torch.zeros(batch, dtype=torch.int32, device=device)
    return FastMultipoleAttentionState(near, near.clone(), far, far.clone(), position)


@overload
def fast_multipole_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...


@overload
def fast_multipole_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, FastMultipoleAttentionState]: ...


def fast_multipole_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    k_weights: Sequence[Tensor] | None = None,
    v_weights: Sequence[Tensor] | None = None,
    k_biases: Sequence[Tensor] | None = None,
    v_biases: Sequence[Tensor] | None = None,
    block: int = 64,
    rank: int = 4,
    levels: int | None = None,
    causal: bool = True,
    count_bias: bool = False,
    phantom_keys: bool = False,
    scale: float | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, FastMultipoleAttentionState]:
    """Fast multipole attention: softmax attention over near keys as they are and far keys as summaries, in O(T log T).

    A query of fine block I (m tokens) sees the tokens of the blocks I-1 and I, and at level l = 1..L, whose groups have
    w_l = m 2^(l-1) tokens, the groups of the pair before its own pair that are not next to its own group: p summaries of each,
    under one softmax.  Not causal, it sees the block I+1 and the pair after its own too.  Every token is seen exactly once, as
    itself or in a summary; up to 2 m tokens this is plain attention.

    Parameters
    ----------
    q, k, v : [B, T, H, D], one floating dtype (float16, bfloat16, float32, float64); any T from 1 to m 2^(L+1) and any strides.
    k_weights, v_weights : for every level [D, p, w_l]: summary r of a group is sum_u W[:, r, u] x_u, plus the bias, over the
        tokens that exist.  None: summary r is the mean of the r-th of p equal parts of the group.  Shared by all heads.
    k_biases, v_biases : for every level [D, p]; None is 0.
    block : m, the tokens of a fine block.
    rank : p, the summaries of a group; must divide `block` when they are means.
    levels : L, for which the library is built; it serves all shorter sequences too.  None: as many as there are weights, or
        as T needs, which builds a library for every doubling of T.
    causal : position i sees j <= i only.
    count_bias : add log(tokens of the group / p) to the logit of its summaries, for the tokens they stand for.
    phantom_keys : blocks and groups before the first, at every level that is built, take part as keys and values of zeros, as in
        the released code of the authors; causal only.  (With `count_bias` that code divides w_l by p in integers.)
    scale : factor of q k; None is D^-0.5.
    return_state : also return the state after position T - 1; causal only.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T), each with blocks and groups of its own; B is 1
        then, and states have S in its place.  Each sequence may have up to m 2^(L+1) tokens, which is checked with
        ``TILEGEN_DEBUG=1`` only.

    Returns
    -------
    y [B, T, H, D] in the dtype of q; with `return_state` the pair (y, state).

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    Kang, Tran, De Sterck, "Fast Multipole Attention: A Divide-and-Conquer Attention Mechanism for Long Sequences", 2023.  The
    causal lists are those of the released code, the bidirectional ones follow from them.  The paper's variant with summarised
    queries (FMA-linear) is not built: how it is put together has not been published.  A row of a causal prefix does not depend
    on what follows, nor on T.  Differentiable once, in q, k, v, weights and biases.
    """
    learned, packed = k_weights is not None or v_weights is not None, cu_seqlens is not None
    if levels is None:
        levels = len(k_weights or v_weights or ()) if learned else fast_multipole_attention_levels(_length(q), _block(block))
    config = Config(block, rank, levels, learned, causal, count_bias, phantom_keys, scale, return_state, packed=packed)
    longest = _length(q) if cu_seqlens is None else longest_in_debug(cu_seqlens)
    if longest is not None and longest > config.capacity:
        which = "a sequence of" if packed else "T ="
        raise ArgumentError(
            f"q has {which} {longest} tokens, must have at most block 2^(levels + 1) = {config.capacity} with levels = {levels} and "
            f"block = {block}; {'pass weights of more levels' if learned else 'raise levels'}"
        )
    tensors = {"q": q, "k": k, "v": v} | _weights(config, q, k_weights, v_weights, k_biases, v_biases)
    if packed:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "q", q) | tensors
    y, *state = _call(config, tensors)
    return (y, _state(config, state)) if return_state else y


def fast_multipole_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: FastMultipoleAttentionState,
    *,
    k_weights: Sequence[Tensor] | None = None,
    v_weights: Sequence[Tensor] | None = None,
    k_biases: Sequence[Tensor] | None = None,
    v_biases: Sequence[Tensor] | None = None,
    count_bias: bool = False,
    phantom_keys: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, FastMultipoleAttentionState]:
    """One decoding step: the next row of causal `fast_multipole_attention`, and the state after it, in O(m + p log T).

    Parameters
    ----------
    q, k, v : [B, H, D], one floating dtype.
    state : from `fast_multipole_attention_init_state`, an earlier step, or
        ``fast_multipole_attention(..., levels=L, return_state=True)``; its shapes tell block, rank and levels.
    k_weights, v_weights, k_biases, v_biases, count_bias, phantom_keys, scale : as in the parallel form that made the state.

    Returns
    -------
    y [B, H, D] in the dtype of q, and the new state; `state` itself is left as it was.
    """
    require_position("fast_multipole_attention", "[B, H, D]", q=q, k=k, v=v)
    if not isinstance(state, tuple) or len(state) != 5 or not all(isinstance(x, Tensor) for x in state):
        raise ArgumentError(
            f"state is a {type(state).__name__}, must be a FastMultipoleAttentionState of five tensors; make one with "
            "fast_multipole_attention_init_state"
        )
    state = FastMultipoleAttentionState(*state)
    if state.near_k.dim() != 4 or state.far_k.dim() != 6 or state.near_k.shape[2] % 2:
        raise ArgumentError(
            f"state has near_k {list(state.near_k.shape)} and far_k {list(state.far_k.shape)}, must be [B, H, 2m, D] and "
            f"[B, H, L, {SLOTS}, p, D]; make one with fast_multipole_attention_init_state"
        )
    levels, rank, learned = state.far_k.shape[2], state.far_k.shape[4], k_weights is not None or v_weights is not None
    config = Config(
        state.near_k.shape[2] // 2, rank, levels, learned, True, count_bias, phantom_keys, scale, return_state=True, step=True
    )
    _require_room(config, state.position)
    rows = {name: x.unsqueeze(1) for name, x in (("q", q), ("k", k), ("v", v))}
    past = {name: x for name, x in state._asdict().items() if levels or not name.startswith("far")}
    y, *after = _call(config, rows | _weights(config, rows["q"], k_weights, v_weights, k_biases, v_biases) | past)
    return y.squeeze(1), _state(config, after)


def _length(q: Any) -> int:
    """T, or 1 where q is no [B, T, H, D] tensor, which the operator will say."""
    return q.shape[1] if isinstance(q, Tensor) and q.dim() == 4 else 1


def _block(block: Any) -> int:
    """A block to count levels with; `Config` refuses what is none."""
    return block if type(block) is int and block >= 1 else 1 << 31


def _require_room(config: Config, position: Tensor) -> None:
    """Refuse a step beyond the levels; only where reading the position costs no synchronisation."""
    if torch.compiler.is_compiling() or position.device.type != "cpu" or not position.numel():
        return
    if (last := int(position.max())) >= config.capacity:
        raise ArgumentError(
            f"state has position {last}, must be below block 2^(levels + 1) = {config.capacity}; make it with more levels"
        )


def _state(config: Config, tensors: Sequence[Tensor]) -> FastMultipoleAttentionState:
    """The state from what the operator returns, which has no far sums when there are no levels."""
    if config.levels:
        return FastMultipoleAttentionState(*tensors)
    near_k, near_v, position = tensors
    far = near_k.new_zeros((*near_k.shape[:2], 0, SLOTS, config.rank, near_k.shape[3]), dtype=acc_dtype(near_k.dtype))
    return FastMultipoleAttentionState(near_k, near_v, far, far.clone(), position)


def _weights(config: Config, q: Tensor, *given: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """The pooling weights by the names of the operator's arguments, in their order."""
    k_weights, v_weights, k_biases, v_biases = given
    if not config.learned:
        for name, biases in (("k_biases", k_biases), ("v_biases", v_biases)):
            if biases is not None:
                raise ArgumentError(f"{name} is given without weights, must be None for means; pass k_weights and v_weights too")
        return {}
    D = q.shape[-1] if isinstance(q, Tensor) and q.dim() else 0
    tensors = {}
    for x, name, weights, biases in (("k", "k_weights", k_weights, k_biases), ("v", "v_weights", v_weights, v_biases)):
        weights = _list(name, weights, config.levels)
        biases = None if biases is None else _list(f"{x}_biases", biases, config.levels)
        for level in range(1, config.levels + 1):
            W = _shaped(f"{name}[{level - 1}]", weights[level - 1], "[D, rank, w]", (D, config.rank, config.width(level)))
            b = W.new_zeros(D, config.rank) if biases is None else biases[level - 1]
            tensors[f"w{x}{level}"] = W
            tensors[f"b{x}{level}"] = _shaped(f"{x}_biases[{level - 1}]", b, "[D, rank]", (D, config.rank))
    return tensors


def _list(name: str, tensors: Any, levels: int) -> Sequence[Tensor]:
    """A list with one tensor for every level."""
    if tensors is None or isinstance(tensors, Tensor):
        what = "None" if tensors is None else "a Tensor"
        raise ArgumentError(f"{name} is {what}, must be a list with a tensor for each of {levels} levels, for keys and values alike")
    if len(tensors) != levels:
        raise ArgumentError(f"{name} has {len(tensors)} tensors, must have one for each of {levels} levels")
    return tensors


def _shaped(name: str, x: Any, form: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of the wanted shape."""
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ArgumentError(f"{name} has {described(x)}, must be a tensor {form} = {list(shape)}; check block, rank and the dim of a head")
    return x
