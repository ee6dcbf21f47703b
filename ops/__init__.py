"""Mechanisms: what is computed.  One folder each: expression, reference, public operators.

The functions here are differentiable PyTorch operators; a folder's own name gives its function, not its module.
"""

from __future__ import annotations

from tilegen.ops.bounded_memory_attention import control
from tilegen.ops.bounded_memory_attention.op import (
    BoundedMemoryState,
    bounded_memory_attention,
    bounded_memory_attention_init_state,
    bounded_memory_attention_step,
)
from tilegen.ops.compact.op import compact, extract
from tilegen.ops.elementwise_attention.op import (
    ElementwiseAttentionState,
    elementwise_attention,
    elementwise_attention_init_state,
    elementwise_attention_step,
)
from tilegen.ops.ema.op import ema, ema_init_state, ema_step
from tilegen.ops.fast_multipole_attention.op import (
    FastMultipoleAttentionState,
    fast_multipole_attention,
    fast_multipole_attention_init_state,
    fast_multipole_attention_levels,
    fast_multipole_attention_step,
)
from tilegen.ops.linear_attention.op import (
    LinearAttentionState,
    linear_attention,
    linear_attention_init_state,
    linear_attention_step,
)
from tilegen.ops.local_attention.op import (
    LocalAttentionState,
    local_attention,
    local_attention_init_state,
    local_attention_step,
)
from tilegen.ops.packed_linear.op import packed_linear
from tilegen.ops.short_long_conv.op import merge_branches, short_long_conv, two_sided_kernel
from tilegen.ops.short_long_conv.step import ShortLongConvState, short_long_conv_init_state, short_long_conv_step

__all__ = [
    "BoundedMemoryState",
    "ElementwiseAttentionState",
    "FastMultipoleAttentionState",
    "LinearAttentionState",
    "LocalAttentionState",
    "ShortLongConvState",
    "bounded_memory_attention",
    "bounded_memory_attention_init_state",
    "bounded_memory_attention_step",
    "compact",
    "control",
    "elementwise_attention",
    "elementwise_attention_init_state",
    "elementwise_attention_step",
    "ema",
    "ema_init_state",
    "ema_step",
    "extract",
    "fast_multipole_attention",
    "fast_multipole_attention_init_state",
    "fast_multipole_attention_levels",
    "fast_multipole_attention_step",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
    "local_attention",
    "local_attention_init_state",
    "local_attention_step",
    "merge_branches",
    "packed_linear",
    "short_long_conv",
    "short_long_conv_init_state",
    "short_long_conv_step",
    "two_sided_kernel",
]
