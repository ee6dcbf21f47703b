"""When is a candidate's output right?  The tolerance rule of the project, on numpy arrays.

The error against a float64 reference may be twice the error of the same formula unscheduled in the kernel's own dtype,
plus one unit in the last place of the output's scale; it is asked of the largest error and of the root of the summed squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Limit:
    """How far an output may be from its reference: `peak` for any element, `norm` for the whole (2-norm)."""

    peak: float
    norm: float


TF32 = "tf32"
"""The dtype of operators on float32 tensors whose products are in TF32."""


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name`, bfloat16 included; TF32 is kept in float32."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float32" if name == TF32 else name)


def epsilon(name: str) -> float:
    """The distance from 1 to the next number; 0 for integers, which must agree exactly."""
    known = {"bfloat16": 2.0**-7, "float16": 2.0**-10, TF32: 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
    return known.get(name, 0.0)


def finite_difference(output: Array, reference: Array) -> Array | None:
    """The difference where both are finite, 0 where both are the same inf or NaN, None where only one is finite."""
    a, b = output.astype(np.float64), reference.astype(np.float64)
    fine = np.isfinite(b)
    if not np.array_equal(fine, np.isfinite(a)) or not np.array_equal(a[~fine], b[~fine], equal_nan=True):
        return None
    return np.subtract(a, b, out=np.zeros_like(b), where=fine)


def limit_for(plain: Array, reference: Array, dtype: str) -> Limit:
    """The limit that the rule gives, from the output of the unscheduled kernel."""
    error = finite_difference(plain, reference)
    if error is None:
        # The formula itself overflows in this dtype; it then tells nothing about what a schedule may do.
        error = np.zeros_like(reference, dtype=np.float64)
    scale = np.where(np.isfinite(reference), np.abs(reference), 0.0)
    ulp = epsilon(dtype)
    peak = 2 * float(np.abs(error).max(initial=0.0)) + ulp * float(scale.max(initial=0.0))
    norm = 2 * float(np.linalg.norm(error.ravel())) + ulp * float(np.linalg.norm(scale.ravel()))
    return Limit(peak, norm)


def limit_around(plain: Array, dtype: str) -> Limit:
    """The limit when the unscheduled kernel itself is the reference: a few units in the last place of the output's scale.

    Two in half precision, where one rounding at the end may fall the other way; 16 where sums of many terms are kept.
    """
    units = 2 if dtype in ("bfloat16", "float16", TF32) else 16
    values = plain.astype(np.float64)
    scale = np.where(np.isfinite(values), np.abs(values), 0.0)
    ulps = units * epsilon(dtype)
    return Limit(ulps * float(scale.max(initial=0.0)), ulps * float(np.linalg.norm(scale.ravel())))


def loosened(limit: Limit) -> Limit:
    """The limit of float32 results that are made of products in TF32, whose roundings are so much coarser."""
    coarser = epsilon(TF32) / epsilon("float32")
    return Limit(limit.peak * coarser, limit.norm * coarser)


def complaint(name: str, output: Array, reference: Array, limit: Limit) -> str | None:
    """What is wrong with an output, in one line, or None."""
    error = finite_difference(output, reference)
    if error is None:
        wrong = int((np.isfinite(output.astype(np.float64)) != np.isfinite(reference)).sum())
        return f"{name}: {wrong} of {output.size} elements are NaN or infinite where the reference is not, or the reverse"
    peak, norm = float(np.abs(error).max(initial=0.0)), float(np.linalg.norm(error.ravel()))
    if peak > limit.peak or norm > limit.norm:
        at = np.unravel_index(int(np.abs(error).argmax()), error.shape)
        where = ", ".join(str(int(i)) for i in at)
        return (
            f"{name}: largest error {peak:.3g} at [{where}] (limit {limit.peak:.3g}), "
            f"norm of the error {norm:.3g} (limit {limit.norm:.3g})"
        )
    return None
