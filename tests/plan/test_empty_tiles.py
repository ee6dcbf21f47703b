"""Tables have room for more tiles than short sequences fill: tasks without elements end before they load anything."""

from __future__ import annotations

import pytest
import torch

from tilegen import mechanisms, ops
from tilegen.build import cuda
from tilegen.mechanisms import Instance
from tilegen.plan.plan import plan
from tilegen.plan.tiles import TileKernel

W, H, D = 5, 2, 10


def local(**options: object) -> Instance:
    mechanism = mechanisms.get("local_attention")
    return Instance(mechanism, mechanism.config(window=128, packed=True, **options), {"D": 16, "E": 16}, "bfloat16")


def test_all_kernels_of_local_attention_end_at_tiles_without_elements() -> None:
    """Also the one that leaves gradients of overlapping keys for the next, which nobody reads there."""
    kernels = [k for f in plan(local()).functions.values() for k in f.kernels if isinstance(k, TileKernel)]
    assert len(kernels) == 3
    assert all(k.elements(k.space) for k in kernels)


def test_what_is_summed_over_all_tiles_is_computed_at_all_tiles() -> None:
    """The gradient of the biases is a sum over tiles, with or without elements."""
    function = plan(local(bias=True)).functions["backward"]
    summed = {tensor for k in function.kernels if not isinstance(k, TileKernel) for tensor in k.loads}
    writers = [k for k in function.kernels if isinstance(k, TileKernel) and summed & set(k.emits)]
    assert writers
    assert not any(k.elements(k.space) for k in writers)


@pytest.mark.parametrize(("function", "tiles"), [("forward", 1), ("backward", 2)])
def test_a_block_asks_before_it_loads(function: str, tiles: int) -> None:
    kernels = cuda.source(local(), "sm_90", (function,)).split("__global__")[1:]
    asking = [text for text in kernels if "if (0 < elements_ptr[0])" in text]
    assert len(asking) == tiles
    for text in asking:
        before, _, after = text.partition("if (0 < elements_ptr[0])")
        assert "uint4" not in before
        assert "\n  }\n}" in after  # what follows is all under the condition
        assert "uint4" not in after.partition("\n  }\n")[2].partition("\n}")[0]


@pytest.mark.parametrize("options", [{}, {"bias": True}], ids=["plain", "bias"])
def test_rows_in_no_sequence_change_nothing(options: dict[str, bool]) -> None:
    """Not even where they are NaN."""
    torch.manual_seed(0)
    time, bounds = 150, torch.tensor([0, 13, 13, 20], dtype=torch.int32)
    q, k, v = (torch.randn(1, time, H, D, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(H, W + 1, dtype=torch.float64, requires_grad=True) if options else None
    grads, found = [], []
    for rows in (20, time):
        given = [x[:, :rows].clone() for x in (q, k, v)]
        for x in given:
            x[:, 20:] = torch.nan
            x.requires_grad_()
        o = ops.local_attention(*given, window=W, chunk=8, bias=bias, cu_seqlens=bounds)
        found.append(o[:, :20])
        leaves = given if bias is None else [*given, bias]
        grads.append([g[:, :20] for g in torch.autograd.grad(o[:, :20].square().sum(), leaves)])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
