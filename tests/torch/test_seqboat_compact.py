"""Compaction inside PyTorch: checks of torch.library, autocast, compilation as one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilegen import nn, ops
from tilegen.ops.compact import COMPACT, EXTRACT, Config, ExtractConfig
from tilegen.torch import operator

ACTIVE = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])


def to_pack() -> list[Tensor]:
    return [torch.randn(10, 3, requires_grad=True), ACTIVE, torch.empty(10, dtype=torch.int32)]


def to_extract() -> list[Tensor]:
    return [torch.randn(10, 3, requires_grad=True), torch.tensor([0, 3], dtype=torch.int32), ACTIVE]


@pytest.mark.parametrize(
    ("mechanism", "config", "inputs"),
    [(COMPACT, Config(), to_pack), (COMPACT, Config(True), to_pack), (EXTRACT, ExtractConfig(), to_extract)],
    ids=["compact", "compact-positions", "extract"],
)
def test_opcheck(mechanism, config, inputs) -> None:
    op, given = operator(mechanism), inputs()
    text = op.signature(config).text
    torch.library.opcheck(op.forward, (given, text))
    library = op.loaded(text, given)
    both = [x.detach() for x in (*given, *op.forward(given, text))]
    seeds = [torch.randn_like(both[len(given) + i]) for i in library.grads]
    torch.library.opcheck(op.backward, ([both[i] for i in library.kept] + seeds, library.key))


def doubled(x: Tensor, active: Tensor, capacity: int | None) -> Tensor:
    """Twice x where it is active, by way of packed rows."""
    packed, cu_seqlens = ops.compact(x, active, capacity=capacity)
    return ops.extract(2 * packed, cu_seqlens, active)


@pytest.mark.parametrize("capacity", [None, 7])
def test_one_graph_for_every_length_and_every_number_of_active_tokens(capacity) -> None:
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(doubled, fullgraph=True, dynamic=True, backend=counting)
    for batch, time, share in ((2, 5, 0.5), (3, 7, 0.0), (4, 9, 0.1), (2, 3, 1.0)):
        x, active = torch.randn(batch, time, 3), torch.rand(batch, time, generator=torch.Generator().manual_seed(time)) < share
        assert torch.equal(compiled(x, active, capacity), 2 * x * active[..., None])
    assert len(graphs) <= 2  # with a capacity, where it is below B T and where it is not


def test_gradients_of_the_compiled_graph() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 5, 3, requires_grad=True)
    y = torch.compile(doubled, fullgraph=True, backend="aot_eager")(x, ACTIVE, None)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], 2.0 * ACTIVE[..., None].expand(x.shape))


def test_a_compiled_graph_refuses_too_many_active_rows() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(2, 5, 3), ACTIVE, 4).sum() == 24
    with pytest.raises(RuntimeError, match="capacity is below the number of active rows; make it larger"):
        compiled(torch.ones(2, 5, 3), ~ACTIVE, 4)


def test_rows_are_rounded_under_autocast() -> None:
    x = torch.randn(2, 5, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.extract(*ops.compact(x, ACTIVE), ACTIVE)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, (x * ACTIVE[..., None]).bfloat16())
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype is torch.float32


def test_the_layer_is_the_same_where_values_are_checked(monkeypatch) -> None:
    torch.manual_seed(0)
    layer, x = nn.SeqBoat(8, window=4, key_dim=10, value_dim=10, orders=2), torch.randn(2, 11, 8)
    leaves = list(layer.parameters())
    y = layer(x)
    assert 0 < layer.activity(x).sum() < 22
    plain = y, *torch.autograd.grad(y.square().sum(), leaves)
    monkeypatch.setenv("TILEGEN_DEBUG", "1")
    y = layer(x)
    checked = y, *torch.autograd.grad(y.square().sum(), leaves)
    torch.testing.assert_close(checked, plain, rtol=1e-6, atol=1e-7)
