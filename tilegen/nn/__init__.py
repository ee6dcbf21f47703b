"""Layers around the operators: the surrounding projections, norms and gates of each paper."""

from __future__ import annotations

from tilegen.nn.abc_attention import ABCAttention, ABCAttentionState
from tilegen.nn.chela import Chela, ChelaState
from tilegen.nn.elementwise_attention import ElementwiseAttention
from tilegen.nn.fast_multipole_attention import FastMultipoleAttention
from tilegen.nn.seqboat import SeqBoat, SeqBoatState

__all__ = [
    "ABCAttention",
    "ABCAttentionState",
    "Chela",
    "ChelaState",
    "ElementwiseAttention",
    "FastMultipoleAttention",
    "SeqBoat",
    "SeqBoatState",
]
