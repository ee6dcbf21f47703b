"""Checks of static options that the configs of mechanisms share.  Imports neither TVM nor torch."""

from __future__ import annotations

import math
from typing import Any

from tilegen.errors import ArgumentError


def require_bools(config: Any, *names: str) -> None:
    """Raise ArgumentError for the first of these fields that is not a bool."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ArgumentError(f"{name} is {getattr(config, name)!r}, must be True or False")


def require_integer(name: str, value: Any, least: int, usual: int | None = None) -> None:
    """Raise ArgumentError unless `value` is an integer of at least `least`; `usual` is what to take."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        advice = "" if usual is None else f"; {usual} is the usual one"
        raise ArgumentError(f"{name} is {value!r}, must be an integer of at least {least}{advice}")


def finite_scale(scale: Any, default: str) -> float | None:
    """`scale` as a float, or None, which stands for `default`; ArgumentError for anything else."""
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ArgumentError(f"scale is {scale!r}, must be a finite number, or None for {default}")
    return float(scale)


def require_direction(config: Any, *names: str, reason: str = "which has no direction of time") -> None:
    """Raise ArgumentError for the first of these fields that is set though the config is not causal."""
    for name in names:
        if not config.causal and getattr(config, name) not in (False, None, "none"):
            raise ArgumentError(f"{name} is set with causal=False, {reason}; drop one of the two")
