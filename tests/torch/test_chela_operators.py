"""Linear attention and short-long convolution as torch operators: opcheck, and whole graphs through torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tilegen import ops
from tilegen.ops.linear_attention import Config
from tilegen.ops.short_long_conv import Config as ConvConfig
from tilegen.torch.signature import encode


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def rows(time: int) -> list[torch.Tensor]:
    return draw((2, time, 2, 3), (2, time, 2, 3), (2, time, 2, 2))


def kernels(time: int) -> list[torch.Tensor]:
    return draw((2, time, 3), (3, 3), (3, 5))


def attention(*inputs: torch.Tensor) -> torch.Tensor:
    return ops.linear_attention(*inputs, chunk=5)


OPERATORS = {
    "linear_attention": (attention, rows, Config(chunk=5)),
    "short_long_conv": (ops.short_long_conv, kernels, ConvConfig()),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_keeps_torchs_rules(name: str) -> None:
    _, inputs, config = OPERATORS[name]
    given = inputs(7)
    if name == "short_long_conv":
        given = [given[0], *(x.detach().t().contiguous().requires_grad_() for x in given[1:])]
    torch.library.opcheck(getattr(torch.ops.tilegen, name).default, (given, encode(config)))


@pytest.mark.parametrize("name", OPERATORS)
def test_one_whole_graph_serves_every_length(name: str) -> None:
    function, inputs, _ = OPERATORS[name]
    compiled: Callable[..., torch.Tensor] = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for time in (7, 12):
        given = inputs(time)
        both = [run(*given) for run in (compiled, function)]
        dy = torch.randn_like(both[0])
        gradients = [torch.autograd.grad(y, given, dy) for y in both]
        for a, b in zip((both[0], *gradients[0]), (both[1], *gradients[1]), strict=True):
            assert torch.equal(a, b)
