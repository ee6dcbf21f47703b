"""SeqBoat's layer: an EMA over all tokens, attention among those that its router activates."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tilegen import ops, settings
from tilegen.errors import ArgumentError
from tilegen.ops.local_attention import Config
from tilegen.ops.local_attention.reference import rotary

POSITIONS = ("rotary", "relative", "local")
NORMS = ("layer", "batch")


class SeqBoatState(NamedTuple):
    """The past of a causal SeqBoat layer: D N + w (Z + H) + 2 numbers a sequence, w more with relative positions.

    h : [B, D, N], the averages of the EMA.
    past : keys, values and number of the last w activated tokens, see `tilegen.ops.LocalAttentionState`.
    position : [B] int64, tokens so far.
    """

    h: Tensor
    past: ops.LocalAttentionState
    position: Tensor


class SeqBoat(nn.Module):
    """Sparse modular activation of a gated attention unit on top of an EMA::

        e = silu(ema(norm(x)))        u, s = W_x e        pr = softmax(u / tau)        active: pr_1 > pr_0
        z, r, v = silu(W_m e')        q, k = z * gamma + beta        e': the active rows of e, in order
        y = silu(s + pr_1 extract(W_h (r * attention(q, k, v))) + x)

    as released with "Sparse Modular Activation for Efficient Sequence Modeling" (Ren et al., 2023), without its dropout.  The
    window counts active tokens, of each sequence on its own: what the other sequences of a batch do changes nothing.  A token
    that is not active has the skip path only and sends no gradient to its router.

    Parameters
    ----------
    dim : channels D of input and output.
    window : w; a token sees the w active ones before it (and after it, when not causal).
    key_dim, value_dim : Z (even with rotary positions) and H, by default 2 D.
    orders : averages N of the EMA.
    kind : "softmax" or "relu2".
    position : "rotary" or "relative", by positions in the sequence, the latter a table of biases by distance; or "local", such a table
        by distance among active tokens.
    max_distance : R of "relative": distances from there on have one bias; R + 1 entries when causal, 2 R + 1 otherwise.
    capacity : the share of all tokens of a batch that there is room for among the active ones.  Memory, and time for what is done to all
        rows of the buffers, go with it; more active tokens are an error (`tilegen.ops.compact`), on a GPU one that ends the process.
    prenorm : norm before the EMA; otherwise after the whole.
    norm : "layer" or "batch".
    temperature : c of the initial tau = c sqrt(D); 0.3 for text, 0.4 for images, 1.0 for long or raw signals.

    Raises
    ------
    ArgumentError
        When an option is out of range or an input does not have `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        window: int,
        key_dim: int = 128,
        value_dim: int | None = None,
        orders: int = 16,
        causal: bool = True,
        kind: str = "softmax",
        position: str = "rotary",
        max_distance: int = 2047,
        capacity: float = 1.0,
        prenorm: bool = True,
        norm: str = "layer",
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value_dim = 2 * dim if value_dim is None and isinstance(dim, int) else value_dim
        sizes = {"dim": dim, "key_dim": key_dim, "value_dim": value_dim, "orders": orders, "max_distance": max_distance}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{name} is {size!r}, must be an integer of at least 1")
        assert value_dim is not None
        for name, choice, known in (("position", position, POSITIONS), ("norm", norm, NORMS)):
            if choice not in known:
                raise ArgumentError(f"{name} is {choice!r}, must be {' or '.join(map(repr, known))}")
        if position == "rotary" and key_dim % 2:
            raise ArgumentError(f"key_dim is {key_dim}, must be even with rotary positions, which turn pairs")
        if not (isinstance(temperature, (int, float)) and math.isfinite(temperature) and temperature > 0):
            raise ArgumentError(f"temperature is {temperature!r}, must be a finite number above 0")
        if not (isinstance(capacity, (int, float)) and 0 < capacity <= 1):
            raise ArgumentError(f"capacity is {capacity!r}, must be a share of all tokens above 0 and at most 1")
        Config(window, kind, causal)
        self.capacity = float(capacity)
        self.dim, self.key_dim, self.value_dim, self.orders = dim, key_dim, value_dim, orders
        self.window, self.causal, self.kind, self.position, self.prenorm = window, causal, kind, position, prenorm
        self.temperature = float(temperature)
        where: dict[str, torch.device | str | torch.dtype | None] = {"device": device, "dtype": dtype}
        new = lambda *shape: nn.Parameter(torch.empty(*shape, **where))  # type: ignore[arg-type]
        rows = dim if causal else 2 * dim
        self.ema_delta, self.ema_alpha, self.ema_beta, self.ema_gamma = (new(rows, orders) for _ in range(4))
        self.ema_omega = new(dim)
        self.norm = nn.LayerNorm(dim, **where) if norm == "layer" else nn.BatchNorm1d(dim, **where)  # type: ignore[arg-type]
        self.hx_proj = nn.Linear(dim, 2 + dim, **where)  # type: ignore[arg-type]
        self.mx_proj = nn.Linear(dim, key_dim + 2 * value_dim, **where)  # type: ignore[arg-type]
        self.h_proj = nn.Linear(value_dim, dim, **where)  # type: ignore[arg-type]
        self.gamma, self.beta = new(2, key_dim), new(2, key_dim)
        self.log_tau = new(1)
        reach = {"local": window, "relative": max_distance}.get(position)
        self.bias = None if reach is None else new(1, reach + 1 if causal else 2 * reach + 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: normals cut at two deviations; beta of the EMA alternates around +1 and -1."""

        def normal(x: Tensor, std: float) -> None:
            nn.init.trunc_normal_(x, 0.0, std, -2 * std, 2 * std)

        for parameter, std in ((self.ema_delta, 0.2), (self.ema_alpha, 0.2), (self.ema_beta, 0.02), (self.ema_gamma, 1.0)):
            normal(parameter, std)
        normal(self.ema_omega, 1.0)
        with torch.no_grad():
            self.ema_beta[:, ::2] += 1
            self.ema_beta[:, 1::2] -= 1
            self.log_tau.fill_(math.log(self.temperature * self.dim**0.5))
        for linear in (self.hx_proj, self.mx_proj, self.h_proj):
            normal(linear.weight, 0.02)
            nn.init.zeros_(linear.bias)
        normal(self.gamma, 0.02)
        nn.init.zeros_(self.beta)
        if self.bias is not None:
            normal(self.bias, 0.02)
        self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, D] -> [B, T, D]."""
        return self._run(x)[0]

    def activity(self, x: Tensor) -> Tensor:
        """Which tokens of `x` [B, T, D] are active: bool [B, T]."""
        self._check(x, 3)
        return self._route(ops.ema(self._before(x), *self._ema(), causal=self.causal))[2]

    def prefill(self, x: Tensor) -> tuple[Tensor, SeqBoatState]:
        """As `forward` on the first tokens of each sequence, and the state from which `step` goes on."""
        if not self.causal:
            raise ArgumentError("prefill is called on a layer with causal=False, which has no state; make it with causal=True")
        y, h, k, v, cu_seqlens, positions = self._run(x, state=True)
        assert h is not None
        # Row m of the state is the active token w - m places before the end of its sequence, where there is one.
        lengths = cu_seqlens.diff()
        places = cu_seqlens[1:, None] - self.window + torch.arange(self.window, device=x.device)
        held = (places >= cu_seqlens[:-1, None])[..., None, None]
        last = [torch.where(held, t[0][places.clamp(min=0)], 0) for t in (k, v)]
        at = torch.where(held[..., 0, 0], positions[places.clamp(min=0)], 0) if self.position == "relative" else None
        past = ops.LocalAttentionState(last[0], last[1], lengths.clamp(max=self.window), at)
        return y, SeqBoatState(h, past, torch.full_like(lengths, x.shape[1], dtype=torch.int64))

    def init_state(self, batch: int) -> SeqBoatState:
        """The state of an empty past, on the device of the parameters."""
        weight = self.hx_proj.weight
        h = ops.ema_init_state(batch, self.dim, self.orders, dtype=weight.dtype, device=weight.device)
        past = ops.local_attention_init_state(
            batch, 1, self.key_dim, self.value_dim, window=self.window, dtype=weight.dtype, device=weight.device,
            positions=self.position == "relative",
        )  # fmt: skip
        return SeqBoatState(h, past, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def step(self, x: Tensor, state: SeqBoatState) -> tuple[Tensor, SeqBoatState]:
        """One position `x` [B, D] -> [B, D] and the state after it; batch norms must be in eval mode."""
        if not self.causal:
            raise ArgumentError("step is called on a layer with causal=False, which has no state; make it with causal=True")
        self._check(x, 2)
        filtered, h = ops.ema_step(self._before(x.unsqueeze(1)).squeeze(1), *self._ema(), state.h)
        e, skip, active, confidence = self._route(filtered)
        q, k, r, v = self._unit(self.mx_proj(e).unsqueeze(1), state.position.unsqueeze(1))
        at = state.position if self.position == "relative" else None
        found, after = ops.local_attention_step(
            q[:, 0], k[:, 0], v[:, 0], state.past, kind=self.kind, bias=self.bias, bias_positions=at
        )
        g = self.h_proj(found[:, 0] * r[:, 0, 0])
        y = self._after(nn.functional.silu(skip + confidence.unsqueeze(-1) * g + x).unsqueeze(1)).squeeze(1)
        push = lambda new, old: torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)  # noqa: E731
        kept = state.past.positions
        at = None if after.positions is None or kept is None else push(after.positions, kept)
        past = ops.LocalAttentionState(
            push(after.k, state.past.k), push(after.v, state.past.v), push(after.held, state.past.held), at
        )
        return y, SeqBoatState(h, past, state.position + 1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, window={self.window}, key_dim={self.key_dim}, value_dim={self.value_dim}, orders={self.orders}, "
            f"causal={self.causal}, kind={self.kind!r}, position={self.position!r}, prenorm={self.prenorm}"
        )

    # ---- parts

    def _run(self, x: Tensor, state: bool = False) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """The output; with `state` the averages after the last token; packed keys and values of active ones, their bounds and positions."""
        self._check(x, 3)
        rows = self._before(x)
        if state:
            filtered, h = ops.ema(rows, *self._ema(), return_state=True)
        else:
            filtered, h = ops.ema(rows, *self._ema(), causal=self.causal), None
        e, skip, active, confidence = self._route(filtered)
        room = None if self.capacity == 1 else math.ceil(self.capacity * x.shape[0] * x.shape[1])
        rows, cu_seqlens, positions = ops.compact(e, active, capacity=room, return_positions=True)
        # Both projections end where the active rows do: what lies behind is zero before attention, and not read after it.
        project = lambda x, map: ops.packed_linear(x, map.weight, map.bias, cu_seqlens=cu_seqlens)  # noqa: E731
        q, k, r, v = self._unit(project(rows, self.mx_proj).unsqueeze(0), positions.unsqueeze(0))
        # These rows belong to no sequence: attention leaves their gradients as memory was, and gamma and beta sum over all rows.
        there = (torch.arange(rows.shape[0], device=x.device) < cu_seqlens[-1]).view(1, -1, 1, 1)
        q, k = (torch.where(there, part, 0) for part in (q, k))
        # Checks of values want every row in a sequence; the rest is one then.
        bounds = nn.functional.pad(cu_seqlens, (0, 1), value=rows.shape[0]) if settings.debug() else cu_seqlens
        at = positions.unsqueeze(0) if self.position == "relative" else None
        found = ops.local_attention(
            q, k, v, window=self.window, kind=self.kind, causal=self.causal, bias=self.bias, bias_positions=at, cu_seqlens=bounds
        )
        g = project((found * r)[0, :, 0], self.h_proj)
        y = self._after(nn.functional.silu(skip + confidence.unsqueeze(-1) * ops.extract(g, cu_seqlens, active) + x))
        return y, h, k, v, cu_seqlens, positions

    def _route(self, filtered: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """e, the skip path, which tokens are active, and their confidence (zero for the others)."""
        e = nn.functional.silu(filtered)
        u, skip = self.hx_proj(e).split([2, self.dim], -1)
        shares = (
            torch.softmax(u.float() / self.log_tau.exp().float(), -1)
            if u.dtype is not torch.float64
            else torch.softmax(u / self.log_tau.exp(), -1)
        )
        active = shares[..., 1] > shares[..., 0]
        return e, skip, active, (shares[..., 1] * active).to(e.dtype)

    def _unit(self, projected: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, r, v [B, T, 1, .] of the gated attention unit."""
        z, r, v = nn.functional.silu(projected).split([self.key_dim, self.value_dim, self.value_dim], -1)
        q, k = ((z * self.gamma[n] + self.beta[n]).unsqueeze(2) for n in range(2))
        if self.position == "rotary":
            q, k = rotary(q, positions), rotary(k, positions)
        return q, k, r.unsqueeze(2), v.unsqueeze(2)

    def _ema(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.ema_delta, self.ema_alpha, self.ema_beta, self.ema_gamma, self.ema_omega

    def _before(self, x: Tensor) -> Tensor:
        return self._normed(x) if self.prenorm else x

    def _after(self, x: Tensor) -> Tensor:
        return x if self.prenorm else self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.BatchNorm1d):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x)

    def _check(self, x: Tensor, dims: int) -> None:
        if not isinstance(x, Tensor) or x.dim() != dims or x.shape[-1] != self.dim:
            what = f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            form = "[B, T, D]" if dims == 3 else "[B, D]"
            raise ArgumentError(f"x has {what}, must be {form} with D = {self.dim}; reshape x to that form")
