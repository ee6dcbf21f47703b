"""Fast multipole attention as a torch operator: opcheck, and whole graphs through torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from tilegen import ops
from tilegen.ops.fast_multipole_attention import MECHANISM, Config
from tilegen.torch import operator
from tilegen.torch.loaded import loaded_by_key

CONFIG = Config(block=9, rank=2, levels=1, learned=True, return_state=True)
DIM = 10


def tensors(time: int, grad: bool = True) -> list[Tensor]:
    """q, k, v and the weights of one level in the order of the operator."""
    generator = torch.Generator().manual_seed(time)
    shapes = [(2, time, 2, DIM)] * 3 + [(DIM, 2, 9), (DIM, 2)] * 2
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


def attend(q: Tensor, k: Tensor, v: Tensor, wk: Tensor, bk: Tensor, wv: Tensor, bv: Tensor) -> Tensor:
    y, state = ops.fast_multipole_attention(
        q, k, v, k_weights=[wk], v_weights=[wv], k_biases=[bk], v_biases=[bv], block=9, rank=2, levels=1, return_state=True
    )
    return y.sin().sum() + state.far_k.sum()


def test_opcheck_of_both_directions() -> None:
    op = operator(MECHANISM)
    given = tensors(20)
    torch.library.opcheck(op.forward, (given, op.signature(CONFIG).text))
    detached = [x.detach() for x in given]
    library = op.loaded(op.signature(CONFIG).text, detached)
    results = op.forward(detached, op.signature(CONFIG).text)
    both = [*detached, *results]
    outputs = [torch.ones_like(results[i]) for i in library.grads]
    assert loaded_by_key(library.key, given[0].device) is library
    torch.library.opcheck(op.backward, ([*[both[i] for i in library.kept], *outputs], library.key))


def test_one_graph_serves_many_lengths() -> None:
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for time in (20, 31, 36):
        given = tensors(time)
        got, wanted = compiled(*given), attend(*given)
        torch.testing.assert_close(got, wanted)
        for a, b in zip(torch.autograd.grad(got, given), torch.autograd.grad(wanted, given), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_takes_weights_along() -> None:
    q, k, v, wk, bk, wv, bv = tensors(20, grad=False)
    weights = {"k_weights": [wk], "v_weights": [wv], "k_biases": [bk], "v_biases": [bv]}
    plain = ops.fast_multipole_attention(q, k, v, **weights, block=9, rank=2, return_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ops.fast_multipole_attention(q, k, v, **weights, block=9, rank=2, return_state=True)
    assert y.dtype is torch.bfloat16 and state.far_k.dtype is torch.float32
    torch.testing.assert_close(y.float(), plain[0], rtol=0.1, atol=0.1)
