"""Tensors of more than 2^31 elements: each row of the batch is as alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilegen.ops import elementwise_attention, linear_attention

pytestmark = pytest.mark.gpu
B, T = 3, 1 << 20
COUNT = B * T * 1024
assert COUNT > 1 << 31


def large(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)


def need(tensors: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < (needed := tensors * COUNT * 2):
        pytest.skip(f"needs {needed >> 30} GiB of the GPU's memory, {free >> 30} are free")


def test_forward_of_a_walk() -> None:
    need(6)
    q, k, v = (large(B, T, 1024, seed=i) for i in range(3))
    y = elementwise_attention(q, k, v, order=2)
    for b in range(B):
        assert torch.equal(y[b : b + 1], elementwise_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], order=2))


def test_forward_and_backward_of_tiles() -> None:
    need(12)
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
