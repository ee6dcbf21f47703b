"""CHELA: short-long convolution and linear attention as one block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops import ShortLongConvState


class ChelaState(NamedTuple):
    """The past of a causal `Chela`: ring buffers of the convolutions, and the state S [B, H, D, E] of the attention."""

    conv: ShortLongConvState
    S: Tensor


class Chela(nn.Module):
    """A CHELA block: short-long convolution, linear attention, a gate and a residual::

        h = norm(x)            z = K_l * silu(K_s * h)
        u = silu(W_u z)        q = u a_q + c_q        k = u a_k + c_k        v = silu(W_v h)
        y = x + W_o (sigmoid(W_g z) rmsnorm(linear_attention(q, k, v)))

    The wiring is reconstructed: the operators and their order are known from "Short-Long Convolutions Help Hardware-Efficient
    Linear Attention to Focus on Long Sequences" (Liu et al., 2024), the maps around them are those of Mega, which it builds on.
    Linear attention has no denominator here, so that the norm of its output is part of the block and comes before the gate.

    Parameters
    ----------
    dim : channels C of input and output.
    heads : heads H of the attention.
    key_dim, value_dim : D and E of a head; half of, and all of dim / H by default.
    short_taps, long_taps : lengths of the kernels; with ``causal=False`` reach of each side, the position itself included.  A long
        kernel may be longer than the sequences that come.
    causal : position t sees 0 .. t only.
    branches : lengths of further kernels beside the long one, merged into it on the fly, or for good by `fold`.

    Raises
    ------
    ArgumentError
        When an option is out of range or an input does not have `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        key_dim: int | None = None,
        value_dim: int | None = None,
        short_taps: int = 4,
        long_taps: int = 256,
        causal: bool = True,
        branches: tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "heads": heads, "short_taps": short_taps, "long_taps": long_taps}
        sizes |= {f"branches[{i}]": taps for i, taps in enumerate(branches)}
        sizes |= {name: n for name, n in (("key_dim", key_dim), ("value_dim", value_dim)) if n is not None}
        for name, n in sizes.items():
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ArgumentError(f"{name} is {n!r}, must be an integer of at least 1")
        if not isinstance(causal, bool):
            raise ArgumentError(f"causal is {causal!r}, must be True or False")
        self.dim, self.heads, self.causal = dim, heads, causal
        self.key_dim = key_dim or max(1, dim // (2 * heads))
        self.value_dim = value_dim or max(1, dim // heads)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        wide, narrow = heads * self.value_dim, heads * self.key_dim
        self.norm = nn.RMSNorm(dim, eps=1e-6, **where)
        self.o_norm = nn.RMSNorm(self.value_dim, eps=1e-6, **where)
        kernel = lambda taps: nn.Parameter(torch.empty(dim, taps if causal else 2 * taps - 1, **where))
        self.short, self.long = kernel(short_taps), kernel(long_taps)
        self.branches = nn.ParameterList(kernel(taps) for taps in branches)
        self.u_proj, self.v_proj = nn.Linear(dim, narrow, **where), nn.Linear(dim, wide, **where)
        self.g_proj, self.o_proj = nn.Linear(dim, wide, **where), nn.Linear(wide, dim, **where)
        self.qk_scale, self.qk_shift = (nn.Parameter(torch.empty(2, narrow, **where)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform maps, zero biases; a short kernel N(0, 1/K), a long one N(0, 1) exp(-a_c t / K) of unit length.

        The rates a_c are spread over the channels from 1 to K: without them the variance of the output would grow with K.
        """
        for linear in (self.u_proj, self.v_proj, self.g_proj, self.o_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.short, std=self.short.shape[1] ** -0.5)
        for kernel in (self.long, *self.branches):
            taps = kernel.shape[1] if self.causal else (kernel.shape[1] + 1) // 2
            lag = torch.arange(kernel.shape[1], dtype=torch.float32, device=kernel.device)
            lag = lag if self.causal else (lag - (taps - 1)).abs()
            rate = torch.logspace(0, 1, self.dim, base=max(taps, 2), device=kernel.device).unsqueeze(1)
            drawn = torch.randn(kernel.shape, device=kernel.device) * torch.exp(-rate * lag / taps)
            with torch.no_grad():
                kernel.copy_(F.normalize(drawn, dim=1))
        # Queries and keys start as the same features, scaled: what looks alike attends.
        nn.init.normal_(self.qk_scale, mean=1.0, std=0.02)
        nn.init.zeros_(self.qk_shift)
        self.norm.reset_parameters()
        self.o_norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, C] -> [B, T, C]."""
        h = self._normed(x, 3)
        z = self._conv(h)
        q, k, v = self._qkv(z, h)
        return self._finish(x, z, ops.linear_attention(q, k, v, causal=self.causal))

    def prefill(self, x: Tensor) -> tuple[Tensor, ChelaState]:
        """As `forward`, and the state from which `step` goes on (causal only)."""
        self._require_causal("prefill")
        h = self._normed(x, 3)
        z = self._conv(h)
        q, k, v = self._qkv(z, h)
        o, S = ops.linear_attention(q, k, v, return_state=True)
        assert isinstance(S, Tensor)
        conv = ops.short_long_conv_init_state(x.shape[0], self.short, self._kernel(), past=h)
        return self._finish(x, z, o), ChelaState(conv, S)

    def step(self, x: Tensor, state: ChelaState) -> tuple[Tensor, ChelaState]:
        """One position `x` [B, C] -> [B, C] and the state after it (causal only).

        The ring buffers of `state` are updated in place, and no gradient goes through them.
        """
        self._require_causal("step")
        h = self._normed(x, 2)
        z, conv = ops.short_long_conv_step(h, self.short, self._kernel(), state.conv)
        o, S = ops.linear_attention_step(*self._qkv(z, h), state.S)
        assert isinstance(S, Tensor)
        return self._finish(x, z, o), ChelaState(conv, S)

    def init_state(self, batch: int) -> ChelaState:
        """The state of an empty past, on the device of the parameters."""
        self._require_causal("init_state")
        conv = ops.short_long_conv_init_state(batch, self.short, self._kernel())
        S = ops.linear_attention_init_state(
            batch, self.heads, self.key_dim, self.value_dim, dtype=self.long.dtype, device=self.long.device
        )
        assert isinstance(S, Tensor)
        return ChelaState(conv, S)

    def fold(self) -> Chela:
        """Merge the branches into the long kernel for good: the same output, no work for them; returns the layer itself."""
        with torch.no_grad():
            merged = self._kernel().clone()
        self.long, self.branches = nn.Parameter(merged, self.long.requires_grad), nn.ParameterList()
        return self

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, key_dim={self.key_dim}, value_dim={self.value_dim}, "
            f"short={self.short.shape[1]} taps, long={self.long.shape[1]} taps, causal={self.causal}"
        )

    def _normed(self, x: Tensor, dims: int) -> Tensor:
        if x.dim() != dims or x.shape[-1] != self.dim:
            form = "[B, T, C]" if dims == 3 else "[B, C]"
            raise ArgumentError(f"x has shape {list(x.shape)}, must be {form} with C = {self.dim}; reshape x to that form")
        h: Tensor = self.norm(x)
        return h

    def _kernel(self) -> Tensor:
        return ops.merge_branches(self.long, list(self.branches), causal=self.causal)

    def _conv(self, h: Tensor) -> Tensor:
        return ops.short_long_conv(h, self.short, self._kernel(), causal=self.causal)

    def _qkv(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [..., H, D] from the convolved features, v [..., H, E] from the input."""
        u = F.silu(self.u_proj(z))
        q, k = (u * scale + shift for scale, shift in zip(self.qk_scale, self.qk_shift, strict=True))
        split = lambda y: y.unflatten(-1, (self.heads, -1))
        return split(q), split(k), split(F.silu(self.v_proj(h)))

    def _finish(self, x: Tensor, z: Tensor, o: Tensor) -> Tensor:
        gated: Tensor = torch.sigmoid(self.g_proj(z)) * self.o_norm(o).flatten(-2)
        y: Tensor = self.o_proj(gated)
        return x + y

    def _require_causal(self, what: str) -> None:
        if not self.causal:
            raise ArgumentError(f"{what} is called on a layer with causal=False, which has no state; make it with causal=True")
