"""Layers around the operators: the surrounding projections, norms and gates of each paper."""

from __future__ import annotations

from tilegen.nn.elementwise_attention import ElementwiseAttention

__all__ = ["ElementwiseAttention"]
