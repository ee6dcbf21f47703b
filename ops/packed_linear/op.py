"""The public operator of a packed linear map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.ops.packed_linear import MECHANISM, Config
from tilegen.torch import operator

_call = operator(MECHANISM)


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, count: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """``x weight^T + bias`` on the first rows of a buffer; how many these are only the device knows.

    What lies behind them is not read, whatever it is; it gives zeros, gets zero gradient, and does not reach those of weight and
    bias.  Tiles of rows that are all behind them take no time, forward and backward.  Differentiable once, in x, weight and bias.

    Parameters
    ----------
    x : [R, D], one floating dtype.
    weight : [E, D], as `torch.nn.Linear` has it; bias : [E].
    count : int32 [1], rows that are used, from 0 to R.
    cu_seqlens : int32 [S+1], as `compact` gives it: its last entry is the count.  One of the two must be given.

    Returns
    -------
    y [R, E] in the dtype of x.

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.
    """
    if (count is None) == (cu_seqlens is None):
        raise ArgumentError(
            "packed_linear takes count or cu_seqlens, one of the two; give the number of rows that are used, int32 [1]"
        )
    name, given = ("count", count) if cu_seqlens is None else ("cu_seqlens", cu_seqlens)
    if not isinstance(given, Tensor) or given.dim() != 1 or not given.shape[0] or (name == "count" and given.shape[0] != 1):
        what = f"shape {list(given.shape)}" if isinstance(given, Tensor) else f"type {type(given).__name__}"
        raise ArgumentError(f"{name} has {what}, must be an int32 tensor [{'1' if name == 'count' else 'S+1'}]")
    tensors: dict[str, Any] = {"x": x, "weight": weight, "count": given[-1:]}
    if bias is not None:
        tensors["bias"] = bias
    (y,) = _call(Config(bias=bias is not None), tensors)
    return y
