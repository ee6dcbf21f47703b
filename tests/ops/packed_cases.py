"""Operators on packed sequences for the tests: what goes in, and the same operator on every sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilegen import ops

H, N = 2, 12


@dataclass(frozen=True)
class Case:
    """An operator with its arguments by shape: "T" and "S" are the tokens and the sequences of a pack.

    rows : arguments that are cut into sequences; shared : those that all sequences share; state : fields of the initial state;
    made : makes the state from its fields; begun : the fields of one state without a past, where
    none is given.
    """

    op: Callable[..., Any]
    rows: dict[str, tuple[Any, ...]]
    shared: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    state: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    made: Callable[..., Any] | None = None
    begun: Callable[[], tuple[Tensor, ...]] | None = None
    options: dict[str, Any] = field(default_factory=dict)


KEYS = ("q", "k", "v")
HEADS = dict.fromkeys(KEYS, (1, "T", H, 12))
CASES = {
    "linear_attention": Case(
        ops.linear_attention,
        {**HEADS, "decay": (1, "T", H)},
        state={"S": ("S", H, 12, 12)},
        made=lambda S: S,
        options={"chunk": 16},
    ),
    "linear_attention both ways": Case(ops.linear_attention, HEADS, options={"chunk": 16, "causal": False, "normalize": True}),
    "bounded_memory_attention": Case(
        ops.bounded_memory_attention,
        {**HEADS, "s": (1, "T", H, N)},
        state={"K": ("S", H, N, 12), "V": ("S", H, N, 12), "z": ("S", H, N)},
        made=ops.BoundedMemoryState,
        options={"chunk": 16, "normalizer": "fixed"},
    ),
    "elementwise_attention": Case(
        ops.elementwise_attention,
        dict.fromkeys(KEYS, (1, "T", 3)),
        state={"A": ("S", 3, 3), "B": ("S", 3, 3), "m": ("S", 3)},
        made=ops.ElementwiseAttentionState,
        options={"order": 2},
    ),
    "local_attention": Case(
        ops.local_attention,
        HEADS,
        {"bias": (H, 6)},
        state={"past_k": ("S", 5, H, 12), "past_v": ("S", 5, H, 12), "held": ("S",)},
        made=ops.LocalAttentionState,
        options={"window": 5, "chunk": 16},
    ),
    "elementwise_attention from nothing": Case(
        ops.elementwise_attention,
        dict.fromkeys(KEYS, (1, "T", 3)),
        begun=lambda: ops.elementwise_attention_init_state(1, 3, order=2, dtype=torch.float64),
        options={"order": 2},
    ),
    "fast_multipole_attention": Case(
        ops.fast_multipole_attention,
        HEADS,
        begun=lambda: ops.fast_multipole_attention_init_state(1, H, 12, levels=2, block=8, rank=2, dtype=torch.float64),
        options={"block": 8, "rank": 2, "levels": 2},
    ),
    "short_long_conv": Case(ops.short_long_conv, {"x": (1, "T", 3)}, {"short": (3, 3), "long": (3, 9)}),
    "ema": Case(
        ops.ema,
        {"x": (1, "T", 3)},
        {**dict.fromkeys(("delta", "alpha", "beta", "gamma"), (3, 2)), "omega": (3,)},
        state={"h": ("S", 3, 2)},
        made=lambda h: h,
    ),
}


def draw(case: Case, lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arguments and state fields for a pack of sequences."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"T": sum(lengths), "S": len(lengths)}

    def made(name: str, shape: tuple[Any, ...]) -> Tensor:
        size = [sizes.get(n, n) for n in shape]
        if name == "held":
            return torch.randint(0, 6, size, generator=generator, dtype=torch.int32)
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        x = {"decay": -x.abs(), "m": x * x, "B": x.abs() + 3}.get(name, x)
        if case.options.get("normalize") and name in "qk":
            x = x.exp()
        return x.to(dtype)

    return {name: made(name, shape) for name, shape in (case.rows | case.shared | case.state).items()}


def call(case: Case, x: dict[str, Tensor], bounds: Tensor | None, state: bool) -> list[Tensor]:
    """The operator on a pack, or on one sequence without `bounds`: the output and the fields of the final state."""
    options = dict(case.options) | ({} if bounds is None else {"cu_seqlens": bounds})
    if state:
        options["return_state"] = True
    if state and case.made is not None:
        options["initial_state"] = case.made(*[x[name] for name in case.state])
    result = case.op(**{name: x[name] for name in (*case.rows, *case.shared)}, **options)
    if not isinstance(result, tuple):
        return [result]
    y, after = result
    return [y, *(field for field in (after if isinstance(after, tuple) else (after,)) if field is not None)]


def alone(case: Case, x: dict[str, Tensor], lengths: list[int], state: bool) -> list[Tensor]:
    """The operator on every sequence by itself, its results put together as a pack has them; an empty one keeps its state."""
    parts: list[list[Tensor]] = []
    start = 0
    for s, length in enumerate(lengths):
        own = {name: t[:, start : start + length] for name, t in x.items() if name in case.rows}
        own |= {name: t[s : s + 1] for name, t in x.items() if name in case.state}
        own |= {name: x[name] for name in case.shared}
        start += length
        if length:
            parts.append(call(case, own, None, state))
        else:
            kept = [own[name] for name in case.state] if case.begun is None else case.begun()
            parts.append([torch.empty(0), *(kept if state else ())])
    y = torch.cat([part[0] for part, length in zip(parts, lengths, strict=True) if length], 1)
    return [y, *[torch.cat(fields) for fields in list(zip(*parts, strict=True))[1:]]]


def bounds_of(lengths: list[int]) -> Tensor:
    """cu_seqlens."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def gradients(results: list[Tensor], leaves: list[Tensor], seed: int) -> list[Tensor]:
    """Gradients of random sums of the results."""
    generator = torch.Generator().manual_seed(seed)
    floating = [y for y in results if y.requires_grad]
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in floating)
    return list(torch.autograd.grad(loss, leaves))
