"""Random graphs as programs: TE and torch are built side by side from one list of instructions.

A program is a list of integer tuples, so that hypothesis can draw and print it.  Every instruction takes the
newest tensor as its first operand, so that all stages lie on the path to the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tvm import te

from tilegen import expression as ex
from tilegen.expression import compute, if_then_else, placeholder, reduce_axis, reduce_max, reduce_min, reduce_sum, scan

EXTENTS = (2, 3, 4, 6)
MAX_ELEMENTS = 300
Instruction = tuple[int, int, int, int]


@dataclass
class Node:
    """A tensor of the graph with the value that torch gives it."""

    te: te.Tensor
    torch: torch.Tensor

    @property
    def shape(self) -> list[int]:
        return list(self.torch.shape)


class Builder:
    """Grows a graph instruction by instruction; an instruction that does not fit the shapes becomes a tanh."""

    def __init__(self, shape: list[int]) -> None:
        self.inputs: list[te.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.stages = 0
        self.nodes = [self.leaf(shape)]

    def leaf(self, shape: list[int]) -> Node:
        tensor = placeholder(shape, "float64", f"X{len(self.inputs)}")
        value = torch.randn(shape, dtype=torch.float64).requires_grad_()
        self.inputs.append(tensor)
        self.values.append(value)
        return Node(tensor, value)

    def integers(self, shape: list[int], below: int) -> Node:
        tensor = placeholder(shape, "int32", f"I{len(self.inputs)}")
        value = torch.randint(-1, below + 1, shape).int()
        self.inputs.append(tensor)
        self.values.append(value)
        return Node(tensor, value)

    def add(self, instruction: Instruction) -> None:
        kind, *choice = instruction
        x = self.nodes[-1]
        y = INSTRUCTIONS[kind % len(INSTRUCTIONS)](self, x, *choice)
        self.nodes.append(y if y is not None else unary(self, x, 0, 0, 0))

    def stage(self, shape: list[int], body: Callable[..., Any], value: torch.Tensor) -> Node:
        self.stages += 1
        assert list(value.shape) == list(shape)
        return Node(compute(shape, body, f"S{self.stages}"), value)

    def partner(self, shape: list[int], pick: int) -> Node:
        """An earlier tensor of this shape, or a new argument."""
        fitting = [n for n in self.nodes[:-1] if n.shape == shape]
        return fitting[pick % len(fitting)] if fitting and pick % 3 else self.leaf(shape)


UNARY = [
    (ex.tanh, torch.tanh),
    (lambda x: ex.exp(ex.tanh(x)), lambda x: x.tanh().exp()),
    (ex.silu, torch.nn.functional.silu),
    (ex.gelu, torch.nn.functional.gelu),
    (ex.softplus, torch.nn.functional.softplus),
    (lambda x: ex.sqrt(x * x + 1.0), lambda x: (x * x + 1).sqrt()),
    (lambda x: ex.log1p(ex.absolute(x)), lambda x: x.abs().log1p()),
    (lambda x: if_then_else(x > 0.3, x * 2.0, ex.sigmoid(x)), lambda x: torch.where(x > 0.3, x * 2, x.sigmoid())),
    (lambda x: ex.rsqrt(ex.power(x, 2) + 0.5), lambda x: (x**2 + 0.5).rsqrt()),
]
BINARY = [
    (lambda a, b: a * b, lambda a, b: a * b),
    (lambda a, b: a - b * 0.5, lambda a, b: a - b * 0.5),
    (lambda a, b: a / (2.0 + b * b), lambda a, b: a / (2 + b * b)),
    (ex.maximum, torch.maximum),
    (ex.logaddexp, torch.logaddexp),
    (lambda a, b: if_then_else(a > b, ex.exp(b - a), 1.0 * a), lambda a, b: torch.where(a > b, torch.exp(b - a), a)),
]


def unary(g: Builder, x: Node, pick: int, *_: int) -> Node:
    f, r = UNARY[pick % len(UNARY)]
    return g.stage(x.shape, lambda *i: f(x.te(*i)), r(x.torch))


def binary(g: Builder, x: Node, pick: int, other: int, _: int) -> Node:
    f, r = BINARY[pick % len(BINARY)]
    y = g.partner(x.shape, other)
    return g.stage(x.shape, lambda *i: f(x.te(*i), y.te(*i)), r(x.torch, y.torch))


def broadcast(g: Builder, x: Node, pick: int, other: int, _: int) -> Node:
    """Times a tensor that has only some of the axes."""
    keep = [k for k in range(len(x.shape)) if (pick >> k) & 1] or [0]
    y = g.partner([x.shape[k] for k in keep], other)
    view = y.torch.reshape([n if k in keep else 1 for k, n in enumerate(x.shape)])
    return g.stage(x.shape, lambda *i: x.te(*i) * y.te(*[i[k] for k in keep]), x.torch * view)


def permute(g: Builder, x: Node, pick: int, *_: int) -> Node | None:
    rank = len(x.shape)
    if rank < 2:
        return None
    turn = 1 + pick % (rank - 1)
    order = list(range(turn, rank)) + list(range(turn))
    back = [order.index(k) for k in range(rank)]
    shape = [x.shape[k] for k in order]
    return g.stage(shape, lambda *i: x.te(*[i[k] for k in back]) * 1.5, x.torch.permute(order) * 1.5)


def reduce(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node | None:
    if len(x.shape) < 2:
        return None
    k = axis % len(x.shape)
    f, r = [(reduce_sum, torch.sum), (reduce_max, torch.amax), (reduce_min, torch.amin)][pick % 3]
    a = reduce_axis(x.shape[k], "r")
    shape = x.shape[:k] + x.shape[k + 1 :]
    return g.stage(shape, lambda *i: f(x.te(*i[:k], a, *i[k:]), a), r(x.torch, k))


def contract(g: Builder, x: Node, pick: int, other: int, _: int) -> Node | None:
    """A product with a matrix over the last axis, or of the tensor with itself."""
    *outer, depth = x.shape
    a = reduce_axis(depth, "r")
    if pick % 3 == 0 and len(outer) == 1:
        body = lambda i, j: reduce_sum(x.te(i, a) * x.te(j, a), a)
        return g.stage([outer[0]] * 2, body, x.torch @ x.torch.T)
    wide = EXTENTS[pick % len(EXTENTS)]
    w = g.partner([wide, depth], other)
    value = torch.einsum("...k,wk->...w", x.torch, w.torch)
    return g.stage([*outer, wide], lambda *i: reduce_sum(x.te(*i[:-1], a) * w.te(i[-1], a), a), value)


def shift(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node:
    """A neighbour with a mask at the border."""
    k, by = axis % len(x.shape), (1, -1, 2)[pick % 3]
    n = x.shape[k]

    def body(*i: Any) -> Any:
        at = i[k] - by
        inside = ex.all_of(at >= 0, at < n)
        return x.te(*i) * 0.5 + if_then_else(inside, x.te(*i[:k], at, *i[k + 1 :]), 0.0)

    at = torch.arange(n) - by
    mask = ((at >= 0) & (at < n)).double().reshape([-1 if d == k else 1 for d in range(len(x.shape))])
    return g.stage(x.shape, body, x.torch * 0.5 + x.torch.index_select(k, at.clamp(0, n - 1)) * mask)


def split(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node | None:
    k = axis % len(x.shape)
    n = x.shape[k]
    width = [d for d in (2, 3) if n % d == 0 and n > d]
    if not width or len(x.shape) > 3:
        return None
    w = width[pick % len(width)]
    shape = [*x.shape[:k], n // w, w, *x.shape[k + 1 :]]
    body = lambda *i: ex.tanh(x.te(*i[:k], i[k] * w + i[k + 1], *i[k + 2 :]))
    return g.stage(shape, body, x.torch.reshape(shape).tanh())


def merge(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node | None:
    if len(x.shape) < 2:
        return None
    k = axis % (len(x.shape) - 1)
    a, b = x.shape[k], x.shape[k + 1]
    shape = [*x.shape[:k], a * b, *x.shape[k + 2 :]]
    body = lambda *i: x.te(*i[:k], ex.floordiv(i[k], b), ex.floormod(i[k], b), *i[k + 1 :]) * 0.75
    return g.stage(shape, body, x.torch.reshape(shape) * 0.75)


def window(g: Builder, x: Node, pick: int, axis: int, other: int) -> Node | None:
    """A convolution over a window that ends at each element."""
    k, width = axis % len(x.shape), 2 + pick % 3
    n = x.shape[k]
    w, r = g.partner([width], other), reduce_axis(width, "r")

    def body(*i: Any) -> Any:
        at = i[k] - r.var
        return reduce_sum(if_then_else(at >= 0, x.te(*i[:k], at, *i[k + 1 :]) * w.te(r.var), 0.0), r)

    value = torch.zeros_like(x.torch)
    for lag in range(min(width, n)):
        moved = torch.cat([torch.zeros_like(x.torch.narrow(k, 0, lag)), x.torch.narrow(k, 0, n - lag)], k)
        value = value + moved * w.torch[lag]
    return g.stage(x.shape, body, value)


def stride(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node | None:
    k = axis % len(x.shape)
    n = x.shape[k]
    if n < 4:
        return None
    step, start = 2, pick % 2
    size = (n - start + step - 1) // step
    shape = [*x.shape[:k], size, *x.shape[k + 1 :]]
    body = lambda *i: x.te(*i[:k], i[k] * step + start, *i[k + 1 :]) * 2.0
    return g.stage(shape, body, x.torch.index_select(k, torch.arange(start, n, step)) * 2)


def reverse(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node:
    k = axis % len(x.shape)
    n = x.shape[k]
    return g.stage(x.shape, lambda *i: x.te(*i[:k], n - 1 - i[k], *i[k + 1 :]) * x.te(*i), x.torch.flip(k) * x.torch)


def causal(g: Builder, x: Node, *_: int) -> Node | None:
    if len(x.shape) < 2:
        return None
    body = lambda *i: if_then_else(i[-1] <= i[-2], x.te(*i), 0.0)
    return g.stage(x.shape, body, x.torch.tril())


def diagonal(g: Builder, x: Node, *_: int) -> Node | None:
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        return None
    value = x.torch.diagonal(dim1=-2, dim2=-1)
    return g.stage(x.shape[:-1], lambda *i: x.te(*i, i[-1]) + 0.0, value)


def concatenate(g: Builder, x: Node, pick: int, axis: int, other: int) -> Node:
    k = axis % len(x.shape)
    n, y = x.shape[k], g.partner(x.shape, other)
    shape = [*x.shape[:k], 2 * n, *x.shape[k + 1 :]]
    body = lambda *i: if_then_else(i[k] < n, x.te(*i), y.te(*i[:k], i[k] - n, *i[k + 1 :]))
    return g.stage(shape, body, torch.cat([x.torch, y.torch], k))


def prefix(g: Builder, x: Node, pick: int, axis: int, other: int) -> Node:
    """A scan: sum, decayed sum with a broadcast decay, or log-sum-exp, either way, inclusive or exclusive."""
    k, back, exclusive = axis % len(x.shape), bool(pick & 1), bool(pick & 2)
    value = x.torch.flip(k) if back else x.torch
    g.stages += 1
    name = f"S{g.stages}"
    if pick % 5 == 0:
        scanned, result = scan(x.te, axis=k, kind="logsumexp", reverse=back, name=name), value.logcumsumexp(k)
    elif pick % 5 < 3:
        shape = [n if d == k or other & 1 else 1 for d, n in enumerate(x.shape)]
        leaf = g.leaf(shape)
        decay = g.stage(shape, lambda *i: ex.sigmoid(leaf.te(*i)), leaf.torch.sigmoid())
        factor = decay.torch.expand_as(x.torch)
        factor = factor.flip(k) if back else factor
        result = _decayed(value.unbind(k), factor.unbind(k), exclusive, k)
        scanned = scan(x.te, axis=k, decay=decay.te, reverse=back, exclusive=exclusive, name=name)
    else:
        result = value.cumsum(k) - value if exclusive else value.cumsum(k)
        scanned = scan(x.te, axis=k, reverse=back, exclusive=exclusive, name=name)
    return Node(scanned, result.flip(k) if back else result)


def _decayed(x: Any, decay: Any, exclusive: bool, axis: int) -> torch.Tensor:
    state, states = torch.zeros_like(x[0]), []
    for part, factor in zip(x, decay, strict=True):
        after = factor * state + part
        states.append(state if exclusive else after)
        state = after
    return torch.stack(states, axis)


def rows(g: Builder, x: Node, pick: int, axis: int, _: int) -> Node:
    """A gather along one axis with positions that repeat and some that lie outside."""
    k, size = axis % len(x.shape), EXTENTS[pick % len(EXTENTS)]
    index = g.integers([size if d == k else 1 for d in range(len(x.shape))], x.shape[k])
    g.stages += 1
    at = index.torch.flatten().long()
    inside = ((at >= 0) & (at < x.shape[k])).double().reshape(index.torch.shape)
    value = x.torch.index_select(k, at.clamp(0, x.shape[k] - 1)) * inside
    return Node(ex.gather(x.te, index.te, axis=k, name=f"S{g.stages}"), value)


INSTRUCTIONS: list[Callable[..., Node | None]] = [
    unary,
    binary,
    broadcast,
    permute,
    reduce,
    contract,
    shift,
    split,
    merge,
    window,
    stride,
    reverse,
    causal,
    diagonal,
    concatenate,
    prefix,
    rows,
]


def grow(shape: list[int], program: list[Instruction], seed: int) -> Builder:
    """The graph of a program; growth that would become too large is replaced by a tanh."""
    torch.manual_seed(seed)
    builder = Builder(shape)
    for kind, *choice in program:
        fits = builder.nodes[-1].torch.numel() * 2 <= MAX_ELEMENTS
        builder.add((kind if fits or kind % len(INSTRUCTIONS) != INSTRUCTIONS.index(concatenate) else 0, *choice))
    return builder
