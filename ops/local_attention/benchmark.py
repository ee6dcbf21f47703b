"""How local attention is measured, and what it must do at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilegen.bench.spec import Benchmark, Work
from tilegen.ops.local_attention.reference import forward as pairs


def forward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v and writes o; a pair in the window takes two products of vectors and about five operations between."""
    rows, seen = sizes["B"] * sizes["T"] * sizes["H"], config.span
    return Work(rows * seen * (2 * sizes["D"] + 2 * sizes["E"] + 5), rows * 2 * (sizes["D"] + sizes["E"]))


def backward(config: Any, sizes: Mapping[str, int]) -> Work:
    """Reads q, k, v, o and do and writes dq, dk, dv; a pair takes five products of vectors: the logits again, dv, dp, dq, dk."""
    rows, seen = sizes["B"] * sizes["T"] * sizes["H"], config.span
    return Work(rows * seen * (6 * sizes["D"] + 4 * sizes["E"] + 8), rows * 4 * (sizes["D"] + sizes["E"]))


def flex(config: Any) -> Callable[..., tuple[Any, ...]] | None:
    """PyTorch's FlexAttention over a sliding window; the block mask is made once for a length, outside the timing."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if config.kind != "softmax" or config.bias or config.lengths or config.initial_state or config.return_state:
        return None
    attention = torch.compile(flex_attention, dynamic=False)
    masks: dict[int, Any] = {}

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i - j <= config.window) & (j - i <= config.ahead)

    def call(q: Any, k: Any, v: Any) -> tuple[Any, ...]:
        time = q.shape[1]
        if time not in masks:
            masks[time] = create_block_mask(seen, None, None, time, time, device=q.device)
        o = attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=masks[time], scale=config.scale)
        return (o.transpose(1, 2),)

    return call


BENCHMARK = Benchmark(
    mechanism="local_attention",
    options=({"window": 128}, {"window": 128, "kind": "relu2"}),
    sizes={"B": 2, "T": 2048, "H": 8, "D": 64, "E": 64},
    lengths=(512, 1024, 2048, 4096),
    peer=pairs,
    forward=forward,
    backward=backward,
    rivals={"FlexAttention": flex},
)
