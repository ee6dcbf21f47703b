"""Reverse-mode differentiation of tensor expressions: the adjoint of a tiled expression is tiled again."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()

from tilegen.autodiff.check import unproved_reads  # noqa: E402 - TVM must be checked before it is imported
from tilegen.autodiff.graph import Gradients, gradient  # noqa: E402

__all__ = ["Gradients", "gradient", "unproved_reads"]
