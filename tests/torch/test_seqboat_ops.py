"""The operators of SeqBoat inside PyTorch: checks of torch.library, autocast, and compilation of the layer as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilegen import nn, ops
from tilegen.ops.ema import MECHANISM as EMA
from tilegen.ops.ema import Config as EmaConfig
from tilegen.ops.local_attention import MECHANISM as LOCAL
from tilegen.ops.local_attention import Config as LocalConfig
from tilegen.torch import operator

C, N = 8, 2


def ema_inputs() -> list[Tensor]:
    return [torch.randn(2, 5, C), *[torch.randn(C, N) for _ in range(4)], torch.randn(C)]


def local_inputs() -> list[Tensor]:
    return [torch.randn(2, 5, 1, 10) for _ in range(3)]


@pytest.mark.parametrize(
    ("mechanism", "config", "inputs"),
    [(EMA, EmaConfig(), ema_inputs), (LOCAL, LocalConfig(4), local_inputs)],
    ids=["ema", "local"],
)
def test_opcheck(mechanism, config, inputs) -> None:
    op, given = operator(mechanism), inputs()
    text = op.signature(config).text
    torch.library.opcheck(op.forward, ([x.requires_grad_() for x in given], text))
    library = op.loaded(text, given)
    both = [x.detach() for x in (*given, *op.forward(given, text))]
    seeds = [torch.randn_like(both[len(given) + i]) for i in library.grads]
    torch.library.opcheck(op.backward, ([both[i] for i in library.kept] + seeds, library.key))


def test_ema_under_autocast_keeps_its_parameters_in_float32() -> None:
    x, *parameters = [t.requires_grad_() for t in ema_inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.ema(x, *parameters)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in (x, *parameters)} == {torch.float32}


def test_the_layer_compiles_as_a_whole() -> None:
    torch.manual_seed(0)
    layer, x = nn.SeqBoat(C, window=4, key_dim=10, value_dim=10, orders=N), torch.randn(2, 11, C)
    run = lambda x: layer(x).square().sum()
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(x), list(layer.parameters())) for f in (compiled, run))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
