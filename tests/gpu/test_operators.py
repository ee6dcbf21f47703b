"""Every operator on a GPU: the tolerance rule, equal bits, ragged and long sequences, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import mechanisms, ops
from tilegen.bench.check import judge, norm, require
from tilegen.bench.spec import load
from tilegen.bundle import shapes
from tilegen.torch.loaded import provenance

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    """An operator with options and sizes."""

    op: str
    sizes: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{key}={value}" for key, value in self.options.items())])

    def call(self) -> Callable[..., Sequence[Tensor]]:
        public, arguments = getattr(ops, self.op), load(self.op).arguments

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            result = public(*arguments(inputs), **self.options)
            return result if isinstance(result, tuple) else [result]

        return run

    def formula(self) -> Callable[..., Sequence[Tensor]]:
        mechanism = mechanisms.get(self.op)
        config = mechanism.config(**self.options)
        return lambda *inputs: mechanism.reference(config, *inputs)

    def inputs(self, dtype: torch.dtype, time: int, batch: int = 2) -> list[Tensor]:
        mechanism = mechanisms.get(self.op)
        sizes = {"B": batch, "T": time, "H": 3} | self.sizes
        generator = torch.Generator(device="cuda").manual_seed(time)
        found = []
        for spec in mechanism.inputs(mechanism.config(**self.options)):
            shape = [shapes.evaluate(dim, sizes) for dim in spec.shape]
            x = torch.randn(shape, device="cuda", generator=generator)
            found.append(x.to(dtype if spec.dtype == "io" else torch.float32))
        return found


HEADS = {"D": 64, "E": 64}
CASES = [
    Case("bounded_memory_attention", HEADS | {"N": 64}),
    Case("elementwise_attention", {"C": 96}, {"order": 2}),
    Case("elementwise_attention", {"C": 96}, {"order": 6, "causal": False}),
    Case("ema", {"C": 64, "N": 4}),
    Case("fast_multipole_attention", {"D": 64}),
    Case("linear_attention", HEADS),
    Case("linear_attention", {"D": 128, "E": 96}, {"causal": False}),
    Case("local_attention", HEADS, {"window": 128}),
    Case("short_long_conv", {"C": 96, "Ks": 4, "Kl": 65}),
]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """What nobody wrote is NaN: torch fills outputs, saved tensors and workspaces when they are made."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(8, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tolerance_rule(case: Case, dtype: torch.dtype) -> None:
    require(judge(case.call(), case.formula(), case.inputs(dtype, 333), measure=norm))


def test_tiles_that_no_block_holds() -> None:
    """328 KB of keys and values; shared memory has 227 on the largest card."""
    case = Case("local_attention", {"D": 128, "E": 128}, {"window": 256})
    require(judge(case.call(), case.formula(), case.inputs(torch.float32, 333), measure=norm))


def test_no_case_falls_to_a_generic_rule() -> None:
    for case in CASES:
        run, inputs = case.call(), [x.requires_grad_() for x in case.inputs(torch.bfloat16, 65)]
        torch.autograd.grad([y.sum() for y in run(*inputs)], inputs)
    made = {op: [place["rule"] for one in provenance(op).values() for place in one] for op in {case.op for case in CASES}}
    assert all(rules and "cuda.walk_plain" not in rules for rules in made.values()), made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_runs_give_the_same_bits(case: Case) -> None:
    inputs = [x.requires_grad_() for x in case.inputs(torch.bfloat16, 777)]
    run = case.call()
    seeds = [torch.randn_like(y) for y in run(*inputs)]
    first, second = (torch.autograd.grad(run(*inputs), inputs, seeds) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_length_compiles_nothing_and_one_token_works(case: Case) -> None:
    for time in (1, 2, 65, 1000):
        for y in case.call()(*case.inputs(torch.bfloat16, time, batch=1)):
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_step_is_captured_in_a_graph(case: Case) -> None:
    inputs = [x.requires_grad_() for x in case.inputs(torch.bfloat16, 256)]
    run = case.call()
    seeds = [torch.randn_like(y) for y in run(*inputs)]

    def step() -> list[Tensor]:
        outputs = run(*inputs)
        return [*outputs, *torch.autograd.grad(outputs, inputs, seeds)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # Not on the default stream: a graph of autograd that lives on there would tie the captured backward pass to it.
    with torch.cuda.stream(side):
        expected = [x.detach() for x in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for x in made:
        x.detach().fill_(float("nan"))
    graph.replay()
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a, b)
