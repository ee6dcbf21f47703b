"""What the tests of linear attention share: random inputs for any options."""

from __future__ import annotations

from typing import Any

import torch

from tilegen import ops
from tilegen.ops.linear_attention import Config

D, E, H = 3, 2, 2
CHUNK = 5
"""Small, so that few positions make several chunks."""


def config(options: dict[str, Any]) -> Config:
    """The config that `call` ends up with."""
    return Config(**{"chunk": CHUNK} | options)


def rows(
    batch: int, time: int, options: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, torch.Tensor]:
    """q, k, v, and the decay and state that `options` ask for; q and k are positive where rows are normalised."""
    generator = torch.Generator().manual_seed(seed * 1000 + time)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    draw = lambda *shape, dtype=dtype: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    q, k, v = draw(batch, time, H, D), draw(batch, time, H, D), draw(batch, time, H, E)
    if options.get("normalize"):
        q, k = q.abs() + 0.1, k.abs() + 0.1
    given = {"q": q, "k": k, "v": v}
    shape = {"head": (H,), "token": (batch, time, H)}.get(options.get("decay", "none"))
    if shape:
        given["decay"] = -draw(*shape, dtype=acc).abs()
    if options.get("initial_state"):
        given["S"] = draw(batch, H, D, E, dtype=acc)
        if options.get("normalize"):
            given["z"] = draw(batch, H, D, dtype=acc).abs()
    return given


def call(options: dict[str, Any], **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The public operator with the tensors by their names; o, S, z in a flat tuple."""
    q, k, v = (tensors[name] for name in "qkv")
    plain = {name: value for name, value in options.items() if name not in ("decay", "initial_state")}
    state: Any = None
    if options.get("initial_state"):
        state = ops.LinearAttentionState(tensors["S"], tensors["z"]) if options.get("normalize") else tensors["S"]
    made = ops.linear_attention(q, k, v, decay=tensors.get("decay"), initial_state=state, **{"chunk": CHUNK} | plain)
    if not options.get("return_state"):
        return (made,)
    o, after = made
    return (o, *after) if options.get("normalize") else (o, after)


def name(options: dict[str, Any]) -> str:
    """A test id."""
    return "-".join(f"{key}={value}" for key, value in options.items()) or "plain"
