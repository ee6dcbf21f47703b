"""Tensors of more than 2^31 elements: each row of the batch is as alone."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from tilegen.ops import elementwise_attention, linear_attention

pytestmark = pytest.mark.gpu
# Odd, and the last sequence is on both sides of the element 2^31.
B, T, C = 3, 750_001, 1024
COUNT = B * T * C
assert COUNT > 1 << 31 > (B - 1) * T * C


def large(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)


def need(tensors: float) -> None:
    """Skip where there is no room for so many tensors of `COUNT` elements; what torch has only put by is room."""
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < (needed := int(tensors * COUNT * 2)):
        pytest.skip(f"needs {needed >> 30} GiB of the GPU's memory, {free >> 30} are free")


def test_forward_of_a_walk() -> None:
    marks = 7 * 4 / 64 / 2  # seven float32 numbers for 64 elements, states that a backward starts from
    need(3 + (1 + marks) * (1 + 1 / B))
    q, k, v = (large(B, T, C, seed=i) for i in range(3))
    y = elementwise_attention(q, k, v, order=2)
    for b in range(B):
        assert torch.equal(y[b : b + 1], elementwise_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], order=2))


def test_forward_and_backward_of_tiles() -> None:
    # Inputs, output, its gradient, three gradients; of one sequence the output and three gradients; comparisons need less.
    need(3 + 1 + 1 + 3 + 4 / B)
    q, k, v = (large(B, T, 16, 64, seed=i).requires_grad_() for i in range(3))
    o = linear_attention(q, k, v)
    weight = large(B, T, 16, 64, seed=3)
    gradients = torch.autograd.grad(o, (q, k, v), weight)
    for b in range(B):
        alone = [x[b : b + 1].detach().requires_grad_() for x in (q, k, v)]
        expected = linear_attention(*alone)
        assert torch.equal(o[b : b + 1], expected)
        for x, row in zip(gradients, torch.autograd.grad(expected, alone, weight[b : b + 1]), strict=True):
            assert torch.equal(x[b : b + 1], row)
