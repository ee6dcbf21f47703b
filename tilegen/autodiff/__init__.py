"""Reverse-mode differentiation of tensor expressions: the adjoint of a tiled expression is tiled again."""

from __future__ import annotations

from tilegen.autodiff.check import unproved_reads
from tilegen.autodiff.graph import Gradients, gradient

__all__ = ["Gradients", "gradient", "unproved_reads"]
