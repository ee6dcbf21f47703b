"""Fast multipole attention as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tilegen import ops
from tilegen.errors import ArgumentError
from tilegen.ops import FastMultipoleAttentionState
from tilegen.ops.fast_multipole_attention import Config


class FastMultipoleAttention(nn.Module):
    """Multi-head attention with `tilegen.ops.fast_multipole_attention` in its middle::

        q, k, v = split(W_qkv x)        y = dropout(W_o fma(q, k, v))

    The wiring is that of the code released with Kang, Tran, De Sterck, "Fast Multipole Attention" (2023).  Its dropout of
    attention weights is not built; the variant with summarised queries (FMA-linear) has no public definition.  Positions are up
    to the caller.

    Parameters
    ----------
    dim : channels of input and output.
    heads : H; must divide `dim`.
    levels : coarse levels; sequences may have up to block 2^(levels + 1) tokens.
    block, rank, causal, count_bias, phantom_keys : options of `tilegen.ops.fast_multipole_attention`.
    pooling : "learned" or "mean".
    bias : whether the two maps have one.
    dropout : of the output, in training.

    Raises
    ------
    ArgumentError
        When an option is out of range or an input does not have `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        levels: int,
        block: int = 64,
        rank: int = 4,
        causal: bool = True,
        count_bias: bool = False,
        phantom_keys: bool = False,
        pooling: str = "learned",
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} is {value!r}, must be an integer of at least 1")
        if dim % heads:
            raise ArgumentError(f"heads is {heads}, must divide dim = {dim}")
        if pooling not in ("learned", "mean"):
            raise ArgumentError(f"pooling is {pooling!r}, must be 'learned' or 'mean'")
        learned = pooling == "learned"
        self.config = Config(block, rank, levels, learned, causal, count_bias, phantom_keys)
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias, device=device, dtype=dtype)
        self.o_proj = nn.Linear(dim, dim, bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        widths = [self.config.width(level) for level in range(1, levels + 1)] if learned else []

        def parameters(*tail: int | None) -> nn.ParameterList:
            shapes = [(self.head_dim, rank, *(w for _ in tail)) for w in widths]
            return nn.ParameterList(nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for shape in shapes)

        self.k_weights, self.v_weights = parameters(None), parameters(None)
        self.k_biases, self.v_biases = parameters(), parameters()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's defaults, as in the released code: those of `torch.nn.Linear`, and of a depthwise convolution for pooling."""
        self.qkv_proj.reset_parameters()
        self.o_proj.reset_parameters()
        for weights, biases in ((self.k_weights, self.k_biases), (self.v_weights, self.v_biases)):
            for W, b in zip(weights, biases, strict=True):
                bound = W.shape[2] ** -0.5
                nn.init.uniform_(W, -bound, bound)
                nn.init.uniform_(b, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, dim] -> [B, T, dim]."""
        q, k, v = self._qkv(x, 3)
        y = ops.fast_multipole_attention(q, k, v, **self._options())
        return self._out(y)

    def prefill(self, x: Tensor) -> tuple[Tensor, FastMultipoleAttentionState]:
        """As `forward`, and the state from which `step` goes on (causal only)."""
        q, k, v = self._qkv(x, 3)
        y, state = ops.fast_multipole_attention(q, k, v, return_state=True, **self._options())
        return self._out(y), state

    def step(self, x: Tensor, state: FastMultipoleAttentionState) -> tuple[Tensor, FastMultipoleAttentionState]:
        """One position `x` [B, dim] -> [B, dim] and the state after it (causal only)."""
        config = self.config
        if not config.causal:
            raise ArgumentError("step is called on a layer with causal=False, which has no state; make it with causal=True")
        y, after = ops.fast_multipole_attention_step(
            *self._qkv(x, 2),
            state,
            count_bias=config.count_bias,
            phantom_keys=config.phantom_keys,
            **self._weights(),
        )
        return self._out(y), after

    def init_state(self, batch: int) -> FastMultipoleAttentionState:
        """The state of an empty past, on the device of the parameters."""
        weight, config = self.qkv_proj.weight, self.config
        return ops.fast_multipole_attention_init_state(
            batch,
            self.heads,
            self.head_dim,
            levels=config.levels,
            block=config.block,
            rank=config.rank,
            dtype=weight.dtype,
            device=weight.device,
        )

    def extra_repr(self) -> str:
        c = self.config
        return f"dim={self.dim}, heads={self.heads}, levels={c.levels}, block={c.block}, rank={c.rank}, causal={c.causal}"

    def _qkv(self, x: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() != dims or x.shape[-1] != self.dim:
            form = "[B, T, dim]" if dims == 3 else "[B, dim]"
            raise ArgumentError(f"x has shape {list(x.shape)}, must be {form} with dim = {self.dim}; reshape x to that form")
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return q, k, v

    def _out(self, y: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.o_proj(y.flatten(-2)))
        return out

    def _weights(self) -> dict[str, Any]:
        if not self.config.learned:
            return {}
        lists = {"k_weights": self.k_weights, "v_weights": self.v_weights, "k_biases": self.k_biases, "v_biases": self.v_biases}
        return {name: list(values) for name, values in lists.items()}

    def _options(self) -> dict[str, Any]:
        c = self.config
        return {
            "block": c.block,
            "rank": c.rank,
            "levels": c.levels,
            "causal": c.causal,
            "count_bias": c.count_bias,
            "phantom_keys": c.phantom_keys,
            **self._weights(),
        }
