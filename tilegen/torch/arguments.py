"""Checks of arguments that public operators share, beyond what `tilegen.torch.signature` asks of every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tilegen.errors import ArgumentError
from tilegen.mechanisms import ACC
from tilegen.torch.signature import DTYPES, NAMES


def acc_dtype(dtype: torch.dtype, name: str = "dtype is") -> torch.dtype:
    """The dtype in which sums and states are kept beside arguments of `dtype`; ArgumentError where there is none."""
    known = NAMES.get(dtype, "")
    if known not in ACC:
        raise ArgumentError(f"{name} {dtype}, must be one of {', '.join(f'torch.{each}' for each in ACC)}")
    return DTYPES[ACC[known]]


def widened(x: Any, like: Any) -> Any:
    """A floating `x` in the dtype of sums beside `like`; anything else as it is, for the check of arguments."""
    name = NAMES.get(like.dtype, "") if isinstance(like, Tensor) else ""
    wide = isinstance(x, Tensor) and x.is_floating_point() and name in ACC
    return x.to(DTYPES[ACC[name]]) if wide else x


def described(x: Any) -> str:
    """What an argument has instead of what it must be: its shape, or its type."""
    return f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"


def require_position(op: str, form: str, **rows: Any) -> None:
    """Raise ArgumentError for the first argument of a decoding step that is not one position of the `form` ``[B, H, D]``."""
    dims = form.count(",") + 1
    for name, x in rows.items():
        if not isinstance(x, Tensor) or x.dim() != dims:
            raise ArgumentError(f"{name} has {described(x)}, must be a tensor {form}, one position; for more call {op}")


def state_fields(name: str, state: Any, fields: Sequence[str], form: str, maker: str) -> dict[str, Tensor]:
    """The tensors of a state by argument name; any tuple with as many will do.

    Parameters
    ----------
    form : what the state must be; maker : the function that makes one.
    """
    if not isinstance(state, tuple) or len(state) != len(fields):
        raise ArgumentError(f"{name} is a {type(state).__name__}, must be {form}; make one with {maker}")
    return dict(zip(fields, state, strict=True))
