"""What the torch operators do around compiled code: dispatch, autograd, tracing, autocast, alignment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.torch import double
from tilegen import mechanisms
from tilegen.errors import ArgumentError, AutodiffError
from tilegen.torch import loaded, operator, provenance
from tilegen.torch.operator import Operator

CONFIG = double.Config(scale=0.5)


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setitem(mechanisms._REGISTRY, double.MECHANISM.name, double.MECHANISM)
    monkeypatch.setattr(loaded, "load_bundle", double.bundle)
    return operator(double.MECHANISM)


def rows(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=grad)


def with_state(batch: int = 2, time: int = 5, channels: int = 3) -> dict[str, torch.Tensor]:
    return {
        "q": rows(batch, time, channels),
        "k": rows(batch, time, channels),
        "s": rows(batch, channels, 3),
        "c": torch.zeros(batch, channels, dtype=torch.float64),
    }


def test_outputs_and_gradients_are_those_of_the_reference(op: Operator) -> None:
    config, tensors = double.with_offset(CONFIG), with_state()
    torch.autograd.gradcheck(lambda q, k, s: op(config, tensors | {"q": q, "k": k, "s": s})[:2], [tensors[n] for n in "qks"])
    for got, expected in zip(op(config, tensors), double.reference(config, **tensors), strict=True):
        torch.testing.assert_close(got, expected)


def test_one_foreign_call_each_way(op: Operator) -> None:
    q, k = rows(2, 4, 6), rows(2, 4, 6)
    library = op.loaded(op.signature(CONFIG).text, [q, k])
    forward, backward = library.bundle.function("forward"), library.bundle.function("backward")
    before = forward.calls, backward.calls
    y, z, _ = op(CONFIG, {"q": q, "k": k})
    (y.sum() + z.sum()).backward()
    assert (forward.calls - before[0], backward.calls - before[1]) == (1, 1)


@pytest.mark.parametrize("used", [0, 1])
def test_an_output_that_is_not_used_has_a_zero_gradient(op: Operator, used: int) -> None:
    q, k = rows(2, 4, 3), rows(2, 4, 3)
    got = torch.autograd.grad(op(CONFIG, {"q": q, "k": k})[used].sum(), (q, k))
    expected = torch.autograd.grad(double.reference(CONFIG, q, k)[used].sum(), (q, k))
    torch.testing.assert_close(got, expected)


def test_constants_are_not_differentiable(op: Operator) -> None:
    y, z, top = op(CONFIG, {"q": rows(2, 4, 3), "k": rows(2, 4, 3)})
    assert y.requires_grad
    assert z.requires_grad
    assert not top.requires_grad
    tensors = with_state() | {"c": rows(2, 3)}
    with pytest.raises(ArgumentError, match=r"c requires grad.*pass c\.detach\(\)"):
        op(double.with_offset(CONFIG), tensors)


def test_only_the_wanted_gradients_flow(op: Operator) -> None:
    q, k = rows(2, 4, 3, grad=False), rows(2, 4, 3)
    op(CONFIG, {"q": q, "k": k})[0].sum().backward()
    assert q.grad is None
    assert k.grad is not None
    assert not op(CONFIG, {"q": q, "k": q})[0].requires_grad
    with torch.no_grad():
        assert not op(CONFIG, {"q": q, "k": k})[0].requires_grad


def test_second_derivatives_are_a_clear_error(op: Operator) -> None:
    q, k = rows(1, 2, 3), rows(1, 2, 3)
    (first,) = torch.autograd.grad(op(CONFIG, {"q": q, "k": k})[0].sum(), k, create_graph=True)
    with pytest.raises(AutodiffError, match="differentiated twice"):
        first.sum().backward()


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("offset", [False, True], ids=["stateless", "state"])
def test_opcheck_forward(op: Operator, offset: bool, grad: bool) -> None:
    config = double.with_offset(CONFIG) if offset else CONFIG
    values = [x.detach().requires_grad_(grad and n != "c") for n, x in with_state().items() if offset or n in "qk"]
    torch.library.opcheck(op.forward, (values, op.signature(config).text))


def test_modes_and_transforms_see_the_operators(op: Operator) -> None:
    """Calls that go round the dispatcher do so only where nobody listens."""
    seen = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def run() -> None:
        q, k = rows(2, 5, 3), rows(2, 5, 3)
        op(CONFIG, {"q": q, "k": k})[0].sum().backward()

    run()
    with Listen():
        run()
    assert [func for func in seen if func in (op.forward, op.backward)] == [op.forward, op.backward]
    with torch.profiler.profile() as profile:
        run()
    assert {str(op.forward.name()), str(op.backward.name())} <= {event.name for event in profile.events()}


def test_opcheck_backward(op: Operator) -> None:
    q, k = rows(2, 5, 3, grad=False), rows(2, 5, 3, grad=False)
    library = op.loaded(op.signature(CONFIG).text, [q, k])
    tiles = torch.full((2 * 2 * 3,), 7.0)
    torch.library.opcheck(op.backward, ([q, k, tiles, torch.randn_like(q), torch.randn(2, 3).double()], library.key))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(op: Operator, dynamic: bool) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        y, z, _ = op(CONFIG, {"q": q * 2, "k": k.tanh()})
        return (y * y).sum() + z.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for time in (4, 7, 9):
        q, k = rows(2, time, 3), rows(2, time, 3)
        got = torch.autograd.grad(compiled(q, k), (q, k))
        torch.testing.assert_close(got, torch.autograd.grad(loss(q, k), (q, k)))


def test_dynamic_shapes_compile_once(op: Operator) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda q, k: op(CONFIG, {"q": q, "k": k})[0], fullgraph=True, dynamic=True, backend=count)
    for batch, time in ((2, 4), (3, 7), (5, 30)):
        compiled(rows(batch, time, 3), rows(batch, time, 3))
    assert len(graphs) == 1


def test_exports(op: Operator) -> None:
    class Net(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return op(CONFIG, {"q": q, "k": k})[0]

    example = rows(2, 4, 3, grad=False), rows(2, 4, 3, grad=False)
    time = torch.export.Dim("time", min=2, max=4096)
    program = torch.export.export(Net(), example, dynamic_shapes={"q": {1: time}, "k": {1: time}})
    q, k = rows(2, 11, 3, grad=False), rows(2, 11, 3, grad=False)
    torch.testing.assert_close(program.module()(q, k), Net()(q, k))


def test_autocast_casts_rows_and_keeps_states(op: Operator) -> None:
    tensors = {n: x.detach().float() for n, x in with_state().items()}
    tensors["q"].requires_grad_()
    tensors["s"] = tensors["s"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, z, top = op(double.with_offset(CONFIG), tensors)
    assert (y.dtype, z.dtype, top.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    y.float().sum().backward()
    assert tensors["q"].grad is not None
    assert tensors["q"].grad.dtype is torch.float32


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="strided"),
        pytest.param(lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape), id="unaligned"),
        pytest.param(lambda x: x[:1].expand(x.shape), id="expanded"),
        pytest.param(lambda x: torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag, id="negative-view"),
    ],
)
def test_any_memory_layout(op: Operator, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    q, k = spoil(rows(2, 4, 3, grad=False)), rows(2, 4, 3, grad=False)
    torch.testing.assert_close(op(CONFIG, {"q": q, "k": k})[0], double.reference(CONFIG, q, k)[0])


def test_an_expanded_gradient_arrives_whole(op: Operator) -> None:
    q, k = rows(2, 4, 3), rows(2, 4, 3)
    got = torch.autograd.grad(op(CONFIG, {"q": q, "k": k})[0].sum(), (q, k))
    torch.testing.assert_close(got, torch.autograd.grad(double.reference(CONFIG, q, k)[0].sum(), (q, k)))


def test_provenance_is_logged_once_and_can_be_asked_for(op: Operator, caplog: pytest.LogCaptureFixture) -> None:
    config = double.Config(scale=0.125)
    q = rows(1, 2, 17)
    with caplog.at_level(logging.INFO, "tilegen"):
        op(config, {"q": q, "k": q})
        op(config, {"q": q, "k": q})
    lines = [record.message for record in caplog.records if '"scale":0.125' in record.message]
    assert len(lines) == 1
    assert "forward.map0 default" in lines[0]
    (records,) = [found for key, found in provenance("binding_double").items() if '"scale":0.125' in key]
    assert records[0]["source"] == "default"


def test_offsets_beyond_32_bits_are_refused_before_anything_is_allocated(op: Operator) -> None:
    huge = torch.zeros(1, dtype=torch.float32).expand(2**14, 2**13, 16)  # 2**31 elements in 4 bytes
    with pytest.raises(ArgumentError, match=r"^q \(input\) has shape .*must be below 2\*\*31; split the batch"):
        op(CONFIG, {"q": huge, "k": huge})
