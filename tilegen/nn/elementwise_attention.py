"""Element-wise attention as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops import ElementwiseAttentionState
from tilegen.ops.elementwise_attention import Config


class ElementwiseAttention(nn.Module):
    """Element-wise attention in place of multi-head attention, without heads::

        y = W_o ea(norm(W_q x), norm(W_k x), W_v x)

    The wiring is reconstructed: of "Element-wise Attention Is All You Need" (Feng, 2025) only the operator is known to us, the
    maps are those of a Transformer block.  The norms (RMS with a learned scale) are ours: they keep q k of order 1, where the
    polynomial follows the exponential.  Positions are up to the caller: attention itself does not see the order of the past.

    Parameters
    ----------
    dim : channels D of input and output.
    order, causal, stabilise, c2 : options of `tilegen.ops.elementwise_attention`.
    bias : whether the four maps have one.
    qk_norm : whether q and k are normalised.

    Raises
    ------
    ArgumentError
        When an option is out of range or an input does not have `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        order: int = 6,
        causal: bool = True,
        stabilise: bool = True,
        c2: float = 2.0,
        bias: bool = True,
        qk_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ArgumentError(f"dim is {dim!r}, must be an integer of at least 1")
        Config(order=order, causal=causal, stabilise=stabilise, c2=c2)
        self.dim, self.order, self.causal, self.stabilise, self.c2 = dim, order, causal, stabilise, c2
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(dim, dim, bias, device=device, dtype=dtype) for _ in range(4)
        )
        self.q_norm, self.k_norm = (
            nn.RMSNorm(dim, eps=1e-6, device=device, dtype=dtype) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform maps and zero biases, as `torch.nn.MultiheadAttention` has them; unit scales of the norms."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, nn.RMSNorm):
                norm.reset_parameters()

    def forward(self, x: Tensor, state: ElementwiseAttentionState | None = None) -> Tensor:
        """`x` [B, T, D] -> [B, T, D]; `state` is the past before position 0 (causal only)."""
        q, k, v = self._qkv(x, 3)
        return self.o_proj(ops.elementwise_attention(q, k, v, causal=self.causal, initial_state=state, **self._options()))

    def prefill(self, x: Tensor, state: ElementwiseAttentionState | None = None) -> tuple[Tensor, ElementwiseAttentionState]:
        """As `forward`, and the state from which `step` goes on."""
        q, k, v = self._qkv(x, 3)
        options = self._options()
        y, after = ops.elementwise_attention(q, k, v, causal=self.causal, initial_state=state, return_state=True, **options)
        return self.o_proj(y), after

    def step(self, x: Tensor, state: ElementwiseAttentionState) -> tuple[Tensor, ElementwiseAttentionState]:
        """One position `x` [B, D] -> [B, D] and the state after it (causal only)."""
        if not self.causal:
            raise ArgumentError("step is called on a layer with causal=False, which has no state; make it with causal=True")
        y, after = ops.elementwise_attention_step(*self._qkv(x, 2), state, stabilise=self.stabilise, c2=self.c2)
        return self.o_proj(y), after

    def init_state(self, batch: int) -> ElementwiseAttentionState:
        """The state of an empty past, on the device of the parameters."""
        weight = self.q_proj.weight
        return ops.elementwise_attention_init_state(batch, self.dim, order=self.order, dtype=weight.dtype, device=weight.device)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, order={self.order}, causal={self.causal}, stabilise={self.stabilise}, c2={self.c2}"

    def _qkv(self, x: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() != dims or x.shape[-1] != self.dim:
            form = "[B, T, D]" if dims == 3 else "[B, D]"
            raise ArgumentError(f"x has shape {list(x.shape)}, must be {form} with D = {self.dim}; reshape x to that form")
        return self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)

    def _options(self) -> dict[str, Any]:
        return {"order": self.order, "stabilise": self.stabilise, "c2": self.c2}
