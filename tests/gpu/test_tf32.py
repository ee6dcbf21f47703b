"""Products in TF32 on a GPU: as exact as torch's own under the same setting, and no bit of the default changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.ops.linear_attention import Config
from tilegen.ops.linear_attention.reference import chunked
from tilegen.torch import provenance

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def setting() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def results(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def test_the_setting_of_a_call_decides() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, upstream = (torch.randn(2, 777, 3, 64, device="cuda", generator=generator) for _ in range(4))
    formula = lambda *x: chunked(Config(), *x)[0]
    exact = results(formula, [x.double() for x in (q, k, v)], upstream)
    error = lambda found: [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
    usual = results(ops.linear_attention, [q, k, v], upstream)
    torch.set_float32_matmul_precision("high")
    rounded, torchs = (results(function, [q, k, v], upstream) for function in (ops.linear_attention, formula))
    again = results(ops.linear_attention, [q, k, v], upstream)
    torch.set_float32_matmul_precision("highest")
    assert all(e < 1e-5 for e in error(usual))
    assert all(e <= 2 * allowed for e, allowed in zip(error(rounded), error(torchs), strict=True))
    has_tf32 = torch.cuda.get_device_capability() >= (8, 0)
    assert all((e > 1e-4) is has_tf32 for e in error(rounded))
    assert all(torch.equal(a, b) for a, b in zip(rounded, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(usual, results(ops.linear_attention, [q, k, v], upstream), strict=True))
    assert any("tf32" in place for place in provenance("linear_attention")) is has_tf32
