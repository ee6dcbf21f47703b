"""The compiled operator of element-wise attention inside PyTorch, and its layer."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from tilegen import nn, ops
from tilegen.ops.elementwise_attention import MECHANISM, Config
from tilegen.torch import operator, provenance

DIM = 8
CONFIG = Config(order=2)


def rows(batch: int = 2, time: int = 5, *, grad: bool = False, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, time, DIM, generator=generator).requires_grad_(grad) for _ in range(3)]


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
def test_opcheck_forward(grad: bool) -> None:
    op = operator(MECHANISM)
    torch.library.opcheck(op.forward, (rows(grad=grad), op.signature(CONFIG).text))


def test_opcheck_backward() -> None:
    op, inputs = operator(MECHANISM), rows()
    text = op.signature(CONFIG).text
    library = op.loaded(text, inputs)
    both = [*inputs, *op.forward(inputs, text)]
    given = [both[i] for i in library.kept] + [torch.randn(2, 5, DIM) for _ in library.grads]
    torch.library.opcheck(op.backward, (given, library.key))


def test_compiles_whole_with_its_neighbours_for_any_length() -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.elementwise_attention(q * 2, k.tanh(), v, order=2).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for batch, time in ((2, 5), (3, 11), (4, 40)):
        inputs = rows(batch, time, grad=True)
        got, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_states_compile_too() -> None:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        state = ops.elementwise_attention_init_state(q.shape[0], DIM, order=2)
        y, state = ops.elementwise_attention(q, k, v, order=2, initial_state=state, return_state=True)
        last, _ = ops.elementwise_attention_step(q[:, 0], k[:, 0], v[:, 0], state)
        return y.sum(1) + last

    torch._dynamo.reset()
    inputs = rows()
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), run(*inputs))


def test_layer_steps_equal_its_parallel_form() -> None:
    torch.manual_seed(0)
    layer, x = nn.ElementwiseAttention(DIM, order=2), torch.randn(2, 9, DIM)
    whole = layer(x)
    y, state = layer.prefill(x[:, :4])
    found = [y]
    for i in range(4, 9):
        y, state = layer.step(x[:, i], state)
        found.append(y.unsqueeze(1))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)
    empty, _ = layer.prefill(x, layer.init_state(2))
    torch.testing.assert_close(empty, whole, rtol=1e-4, atol=1e-5)


def test_layer_names_are_stable() -> None:
    maps = [f"{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")]
    assert set(nn.ElementwiseAttention(DIM).state_dict()) == {*maps, "q_norm.weight", "k_norm.weight"}


def test_layer_parameters_can_be_drawn_again() -> None:
    layer = nn.ElementwiseAttention(DIM)
    before = copy.deepcopy(layer.state_dict())
    torch.nn.init.ones_(layer.q_proj.bias)
    torch.nn.init.zeros_(layer.k_norm.weight)
    layer.reset_parameters()
    assert not torch.equal(layer.q_proj.weight, before["q_proj.weight"])
    assert torch.equal(layer.q_proj.bias, before["q_proj.bias"])
    assert torch.equal(layer.k_norm.weight, before["k_norm.weight"])


def test_layer_trains_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = nn.ElementwiseAttention(DIM, order=2), torch.randn(2, 12, DIM)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), full, rtol=0.1, atol=0.1)
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.isfinite().all()


def test_a_new_batch_or_length_needs_no_new_library() -> None:
    ops.elementwise_attention(*rows(1, 3), order=2)
    before = set(provenance("elementwise_attention"))
    for batch, time in ((1, 1), (3, 64), (2, 257)):
        ops.elementwise_attention(*rows(batch, time), order=2)
    assert set(provenance("elementwise_attention")) == before


def test_importing_the_operators_loads_no_compiler() -> None:
    code = "import sys; from tilegen import ops, nn; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
