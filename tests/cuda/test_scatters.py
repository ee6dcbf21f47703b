"""Scatter-adds as CUDA text, which the backward of a gather has: no atomics, no races, rows that meet added in their order."""

from __future__ import annotations

import pytest
import torch

import tilegen
from tests.cuda.emulator.functions import EmulatedInstance
from tests.cuda.emulator.module import ORDERS
from tilegen import mechanisms
from tilegen.mechanisms import Instance
from tilegen.ops.local_attention import LOOKUP, LookupConfig, reference
from tilegen.plan.gpu import partial, scatter


def squared_rows(unique: bool, name: str) -> Instance:
    """y[b, m, c] = x[b, index[b, m], c]^2, zero where the index lies outside; the instance for 5 channels."""

    def expression(config, dims, x, index):
        from tilegen.expression import compute, gather

        rows = gather(x, index, axis=1, unique=unique)
        return compute(rows.shape, lambda b, m, c: rows[b, m, c] * rows[b, m, c], name="y")

    expression.__name__ = name
    declared = tilegen.mechanism(
        inputs={"x": "B T C", "index": "int32: B M 1"}, outputs={"y": "B M C"}, symbolic=("B", "T", "M"), constant=("index",)
    )
    mechanism = declared(expression).mechanism
    del mechanisms._REGISTRY[name]  # lists of operators stay as they are
    return Instance(mechanism, mechanism.config(), {"C": 5}, "float32")


@pytest.mark.parametrize("unique", [True, False], ids=["distinct", "meeting"])
def test_gradient_of_a_gather(unique: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 5, generator=generator, requires_grad=True)
    if unique:
        index = torch.stack([torch.randperm(7, generator=generator)[:4] for _ in range(2)])
        index[0, 1] = 7  # outside: contributes nothing
    else:
        index = torch.randint(-1, 8, (2, 11), generator=generator)
        index[1, :4] = 3
    inside = ((index >= 0) & (index < 7)).unsqueeze(-1)
    rows = x.gather(1, index.clamp(0, 6).unsqueeze(-1).expand(-1, -1, 5)) * inside
    grad = torch.randn(rows.shape, generator=generator)
    (rows * rows).backward(grad)

    made = EmulatedInstance(squared_rows(unique, f"squared_rows_{unique}"), ("forward", "backward"))
    given = {"x": x.detach(), "index": index.int().unsqueeze(-1)}
    forward = made.run("forward", given)
    torch.testing.assert_close(forward["y"], (rows * rows).detach())
    backward = made.run("backward", given | forward | {"grad_y": grad}, orders=tuple(ORDERS))
    torch.testing.assert_close(backward["grad_x"], x.grad)
    assert "atomic" not in made.source


@pytest.mark.parametrize("entries", [7, 300])
def test_gradient_of_a_table_that_many_rows_look_up(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are divided among warps: places that meet in a round, over rounds and parts, and more places than a block holds."""
    monkeypatch.setattr(scatter, "PLACES", 128)
    monkeypatch.setattr(partial, "MOST_OF_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, entries, generator=generator, requires_grad=True)
    entry = torch.randint(-1, entries + 1, (301, 3), generator=generator, dtype=torch.int32)
    entry[40:90] = 5
    (rows,) = reference.lookup(None, table, entry)
    grad = torch.randn(rows.shape, generator=generator)
    rows.backward(grad)
    made = EmulatedInstance(Instance(LOOKUP, LookupConfig(), {"M": entries, "P": 3}, "float32"), ("forward", "backward"))
    given = {"table": table.detach(), "entry": entry}
    forward = made.run("forward", given)
    assert torch.equal(forward["rows"], rows.detach())
    backward = made.run("backward", given | {"grad_rows": grad}, orders=tuple(ORDERS))
    torch.testing.assert_close(backward["grad_table"], table.grad, rtol=1e-5, atol=1e-5)
    assert "__shfl_xor_sync" in made.source
    assert "atomic" not in made.source
