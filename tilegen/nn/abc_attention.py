"""Attention with bounded-memory control as a layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops import BoundedMemoryState, control
from tilegen.ops.bounded_memory_attention import Config
from tilegen.ops.bounded_memory_attention.op import Kind


class ABCAttentionState(NamedTuple):
    """The past of a causal `ABCAttention`: the slots, and the number of tokens in them (int64 []), which rotary positions need."""

    memory: BoundedMemoryState
    position: Tensor


class ABCAttention(nn.Module):
    """Attention with learned bounded-memory control (ABC_MLP) in place of multi-head attention::

        q, k = rotary(W_q x, W_k x)        v = W_v x        s = clamp(W_s x, -c, c)
        y = W_o (silu(W_g x) rmsnorm(abc(q, k, v, s)))

    The wiring is that of flash-linear-attention's ABC layer; the model of "ABC: Attention with Bounded-memory Control" (Peng et
    al., 2022) itself has a standard Transformer around the attention.  No map has a bias.

    Parameters
    ----------
    dim : channels C of input and output.
    heads : heads H.
    slots : slots N of a head.
    key_dim, value_dim : D and E of a head; half of, and all of dim / H by default.
    normalizer : "running" or "fixed", as in `tilegen.ops.bounded_memory_attention`.
    causal : position t sees 0 .. t only.
    clamp : c; the operator itself takes any s, a limit keeps a slot from never forgetting.  None is no limit.
    rotary : whether q and k carry positions; D must then be even.

    Raises
    ------
    ArgumentError
        When an option is out of range or an input does not have `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        slots: int = 64,
        key_dim: int | None = None,
        value_dim: int | None = None,
        normalizer: Kind = "running",
        causal: bool = True,
        clamp: float | None = 32.0,
        rotary: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "heads": heads, "slots": slots, "key_dim": key_dim, "value_dim": value_dim}
        for name, n in sizes.items():
            if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
                raise ArgumentError(f"{name} is {n!r}, must be an integer of at least 1")
        Config(normalizer=normalizer, causal=causal)
        if normalizer == "none":
            raise ArgumentError('normalizer is \'none\', must be "running" or "fixed": the layer learns s, not the weights themselves')
        if (key_dim is None or value_dim is None) and dim % (2 * heads):
            raise ArgumentError(f"dim is {dim}, must be a multiple of 2 heads = {2 * heads}; or give key_dim and value_dim")
        self.key_dim, self.value_dim = key_dim or dim // (2 * heads), value_dim or dim // heads
        if rotary and self.key_dim % 2:
            raise ArgumentError(f"key_dim is {self.key_dim}, must be even for rotary positions; or pass rotary=False")
        self.dim, self.heads, self.slots = dim, heads, slots
        self.normalizer, self.causal, self.clamp, self.rotary = normalizer, causal, clamp, rotary
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
        narrow, wide = heads * self.key_dim, heads * self.value_dim
        self.q_proj, self.k_proj = linear(dim, narrow), linear(dim, narrow)
        self.v_proj, self.g_proj, self.o_proj = linear(dim, wide), linear(dim, wide), linear(wide, dim)
        self.s_proj = linear(dim, heads * slots)
        self.o_norm = nn.RMSNorm(self.value_dim, eps=1e-5, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform maps of gain 2^-5/2, as flash-linear-attention has them; a unit scale of the norm."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj, self.s_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        self.o_norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, C] -> [B, T, C]."""
        q, k, v, s = self._qkvs(x, 3, None)
        return self._finish(x, ops.bounded_memory_attention(q, k, v, s, normalizer=self.normalizer, causal=self.causal))

    def prefill(self, x: Tensor, state: ABCAttentionState | None = None) -> tuple[Tensor, ABCAttentionState]:
        """As `forward` after the past `state`, and the state from which `step` goes on (causal only)."""
        self._require_causal("prefill")
        state = self.init_state(x.shape[0]) if state is None else state
        q, k, v, s = self._qkvs(x, 3, state.position)
        o, memory = ops.bounded_memory_attention(
            q, k, v, s, normalizer=self.normalizer, initial_state=state.memory, return_state=True
        )
        return self._finish(x, o), ABCAttentionState(memory, state.position + x.shape[1])

    def step(self, x: Tensor, state: ABCAttentionState) -> tuple[Tensor, ABCAttentionState]:
        """One position `x` [B, C] -> [B, C] and the state after it (causal only)."""
        self._require_causal("step")
        q, k, v, s = self._qkvs(x, 2, state.position)
        o, memory = ops.bounded_memory_attention_step(q, k, v, s, state.memory, normalizer=self.normalizer)
        return self._finish(x, o), ABCAttentionState(memory, state.position + 1)

    def init_state(self, batch: int) -> ABCAttentionState:
        """The state of an empty past, on the device of the parameters."""
        weight = self.q_proj.weight
        memory = ops.bounded_memory_attention_init_state(
            batch,
            self.heads,
            self.slots,
            self.key_dim,
            self.value_dim,
            normalizer=self.normalizer,
            dtype=weight.dtype,
            device=weight.device,
        )
        return ABCAttentionState(memory, torch.zeros((), dtype=torch.int64, device=weight.device))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, slots={self.slots}, normalizer={self.normalizer!r}, causal={self.causal}"

    def _qkvs(self, x: Tensor, dims: int, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the operator, [B, T, H, X] for three dims and [B, H, X] for two."""
        if x.dim() != dims or x.shape[-1] != self.dim:
            form = "[B, T, C]" if dims == 3 else "[B, C]"
            raise ArgumentError(f"x has shape {list(x.shape)}, must be {form} with C = {self.dim}; reshape x to that form")
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary:
            position = torch.arange(x.shape[1] if dims == 3 else 1, device=x.device)
            angles = self._angles(position if start is None else position + start)  # [T, D / 2]
            angles = angles[:, None, :] if dims == 3 else angles
            q, k = rotate(q, angles), rotate(k, angles)
        weight = self.s_proj.weight.unflatten(0, (self.heads, self.slots))
        s = control.mlp(x if dims == 3 else x.unsqueeze(1), weight, clamp=self.clamp)
        return q, k, v, s if dims == 3 else s.squeeze(1)

    def _angles(self, position: Tensor) -> Tensor:
        """Rotary angles, position times 10000^(-2 i / D)."""
        i = torch.arange(0, self.key_dim, 2, device=position.device, dtype=torch.float32)
        return position.to(torch.float32).unsqueeze(-1) * 10000.0 ** (-i / self.key_dim)

    def _finish(self, x: Tensor, o: Tensor) -> Tensor:
        return self.o_proj(F.silu(self.g_proj(x)) * self.o_norm(o).flatten(-2))

    def _require_causal(self, name: str) -> None:
        if not self.causal:
            raise ArgumentError(f"{name} is called on a layer with causal=False, which has no state; make it with causal=True")


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """`x` [..., D] with its halves rotated against each other by `angles` [..., D / 2] (RoFormer; Su et al., 2021)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
