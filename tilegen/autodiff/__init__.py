"""Reverse-mode differentiation of tensor expressions: the adjoint of a tiled expression is tiled again."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()

from tilegen.autodiff.check import require_proved, unproved_reads  # noqa: E402 - TVM must be checked before it is imported
from tilegen.autodiff.graph import Gradients, gradient  # noqa: E402
from tilegen.autodiff.rounding import round_operands  # noqa: E402

__all__ = ["Gradients", "gradient", "require_proved", "round_operands", "unproved_reads"]
