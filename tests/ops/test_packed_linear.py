"""Packed linear maps: the rows in use are those of `torch.nn.functional.linear`, the others are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tilegen import ops
from tilegen.bench.check import judge, require
from tilegen.errors import ArgumentError
from tilegen.ops.packed_linear import MECHANISM, Config, reference
from tilegen.torch import operator

SIZES = [(12, 9), (40, 24), (200, 150)]
"""Widths below a block, of one block, and of several with a rest."""


def draw(rows: int, width: int, out: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (out, width), (out,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def number(count: int) -> Tensor:
    return torch.tensor([count], dtype=torch.int32)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 0), (150, 0), (150, 1), (150, 64), (150, 131), (150, 150)])
def test_rows_in_use_are_mapped_and_nothing_else_is_read(rows: int, count: int, size: tuple[int, int]) -> None:
    x, weight, bias = draw(rows, *size)
    upstream = draw(rows, size[1], 1, seed=1)[0]
    x[count:] = upstream[count:] = torch.nan
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = ops.packed_linear(*leaves, count=number(count))
    expected = torch.nn.functional.linear(x[:count], weight, bias)
    torch.testing.assert_close(y[:count], expected, rtol=1e-12, atol=1e-12)
    assert (y[count:] == 0).all()
    own = torch.autograd.grad(y, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream[:count])
    assert (own[0][count:] == 0).all()
    for a, b in zip(own, (torch.nan_to_num(wanted[0]), *wanted[1:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 1 << 16))
def test_what_lies_behind_changes_no_bit(rows: int, count: int, seed: int) -> None:
    """Neither more room nor other values there."""
    x, weight, _ = draw(rows, 40, 24, torch.float32, seed)
    count = min(count, rows)
    y = ops.packed_linear(x, weight, count=number(count))
    more = torch.cat([x[:count], torch.full((rows - count + 70, 40), torch.inf)])
    assert torch.equal(ops.packed_linear(more, weight, count=number(count))[:rows], y)


def test_gradcheck() -> None:
    x, weight, bias = (t.requires_grad_() for t in draw(9, 24, 17))
    call = lambda *t: ops.packed_linear(*t, count=number(6))
    torch.autograd.gradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [100, 333])
def test_tolerance_rule(dtype: torch.dtype, count: int) -> None:
    call = lambda *t: [ops.packed_linear(*t, count=number(count))]
    formula = lambda *t: reference.forward(Config(bias=True), *t, number(count))
    require(judge(call, formula, draw(333, 96, 80, dtype)))


def test_the_last_bound_of_sequences_is_the_count() -> None:
    x, weight, bias = draw(20, 24, 17)
    bounds = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
    assert torch.equal(
        ops.packed_linear(x, weight, bias, cu_seqlens=bounds), ops.packed_linear(x, weight, bias, count=number(11))
    )


def test_opcheck() -> None:
    op, inputs = operator(MECHANISM), [*(t.requires_grad_() for t in draw(20, 24, 17, torch.float32)), number(11)]
    text = op.signature(Config(bias=True)).text
    torch.library.opcheck(op.forward, (inputs, text))
    library = op.loaded(text, inputs)
    both = [x.detach() for x in (*inputs, *op.forward(inputs, text))]
    seeds = [torch.randn_like(both[len(inputs) + i]) for i in library.grads]
    torch.library.opcheck(op.backward, ([both[i] for i in library.kept] + seeds, library.key))


def test_one_compiled_graph_for_every_number_of_rows() -> None:
    torch._dynamo.reset()
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x, w, n: ops.packed_linear(x, w, count=n), fullgraph=True, dynamic=True, backend=counting)
    for rows, count in ((20, 11), (70, 70), (33, 0)):
        x, weight, _ = draw(rows, 24, 17)
        assert torch.equal(compiled(x, weight, number(count)), ops.packed_linear(x, weight, count=number(count)))
    assert len(graphs) == 1


def test_rounds_under_autocast() -> None:
    x, weight, bias = (t.requires_grad_() for t in draw(20, 24, 17, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.packed_linear(x, weight, bias, count=number(11))
    assert y.dtype is torch.bfloat16
    assert {g.dtype for g in torch.autograd.grad(y.float().sum(), (x, weight, bias))} == {torch.float32}


ROWS, WEIGHT, BIAS = draw(20, 24, 17, torch.float32)
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no count": ({}, "packed_linear takes count or cu_seqlens, one of the two"),
    "two counts": ({"count": number(3), "cu_seqlens": number(3)}, "packed_linear takes count or cu_seqlens, one of the two"),
    "a number": ({"count": 3}, r"count has type int, must be an int32 tensor \[1\]"),
    "several counts": ({"count": torch.zeros(2, dtype=torch.int32)}, r"count has shape \[2\], must be an int32 tensor \[1\]"),
    "wide count": ({"count": torch.tensor([3])}, "count has dtype int64"),
    "weight": ({"count": number(3), "weight": WEIGHT.t()}, "weight"),
    "bias": ({"count": number(3), "bias": BIAS[:5]}, "bias"),
    "dtype": ({"count": number(3), "weight": WEIGHT.double()}, "weight"),
    "axes": ({"count": number(3), "x": ROWS[None]}, "x"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    options, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        ops.packed_linear(**({"x": ROWS, "weight": WEIGHT, "bias": BIAS} | options))
