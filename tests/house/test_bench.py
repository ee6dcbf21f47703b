"""Numbers are given for right results only, and count what they say they count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tilegen.bench import check, clock, run, spec
from tilegen.errors import ArgumentError


def double(x):
    return (2 * x,)


INPUT = torch.randn(64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_formula_itself_passes(dtype):
    verdicts = check.judge(double, double, [INPUT.to(dtype)])
    check.require(verdicts)
    assert [v.name for v in verdicts] == ["output 0", "gradient 0"]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda x: (2 * x + 1e-5,), "output 0"),
        (lambda x: (2 * x.detach() + x - x.detach(),), "gradient 0"),
        (lambda x: (2 * x + math.nan,), "output 0"),
    ],
    ids=["output", "gradient", "nan"],
)
def test_a_wrong_result_is_named(wrong, name):
    with pytest.raises(check.ToleranceError, match=name):
        check.require(check.judge(wrong, double, [INPUT]))


def test_twice_the_error_of_the_formula_is_allowed_and_no_more():
    exact = torch.ones(4, dtype=torch.float64)
    plain = torch.ones(4) + 2**-10
    unit = torch.finfo(torch.float32).eps
    assert check.verdict("y", torch.ones(4) + 2**-9, plain, exact).passed
    assert not check.verdict("y", torch.ones(4) + 2**-9 + 4 * unit, plain, exact).passed


def test_one_wrong_element_of_many_is_found_by_the_peak():
    exact = torch.randn(10000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = exact.float()
    ours[17] += 1e-5
    assert not check.verdict("y", ours, exact.float(), exact).passed


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_the_norm_is_allowed_twice_that_of_the_formula(factor):
    exact = torch.randn(10000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = 1e-6 * torch.randn(10000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = check.verdict("y", (exact + factor * noise).float(), (exact - noise).float(), exact, check.norm)
    assert found.passed is (factor == 1.0)


def test_the_formula_adds_in_its_own_dtype():
    """2^24 + 1 is not a float32: a sum kept in float32 stays where it is, in the value and in the gradient."""
    x = torch.tensor([2.0**24, 1.0, 1.0], requires_grad=True)
    with check.SumsInOwnDtype():
        y = x.cumsum(0)
        (gradient,) = torch.autograd.grad(y, x, torch.tensor([1.0, 1.0, 2.0**24]))
    assert y.tolist() == [2.0**24] * 3
    assert gradient.tolist() == [2.0**24] * 3


def test_every_call_is_made_and_timed():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    timings = clock.compare({name: lambda name=name: count(name) for name in calls}, 3, torch.device("cpu"))
    assert all(n >= 3 for n in calls.values())
    assert all(0 < t.low <= t.median <= t.high and t.samples == 3 for t in timings.values())


def test_a_summary_is_median_and_quartiles():
    assert clock.Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == clock.Timing(3.0, 2.0, 4.0, 5)


def test_elementwise_attention_counts_its_least_work():
    """Order 2, causal, stabilised, counted by hand from the expression; four tensors forward, seven more backward."""
    benchmark = spec.load("elementwise_attention")
    config = benchmark.described().config(order=2)
    work = benchmark.work(config, {"B": 1, "T": 10, "C": 3})
    weight, powers, products, sums, polynomials, quotient = 6, 0, 1 + 2 + 2, 6 * 2, 2 * 7, 1
    assert work["forward"] == spec.Work(30 * (weight + powers + products + sums + polynomials + quotient), 30 * 4)
    assert work["forward+backward"].elements == 30 * 11


MEASURED = sorted(path.parent.name for path in (Path(__file__).parents[2] / "ops").glob("*/benchmark.py"))


@pytest.mark.parametrize("op", MEASURED)
def test_a_benchmark_compares_the_same_mathematics(op):
    """The peer is timed as the same thing, so it has to be that: for every option set, and in every gradient."""
    benchmark = spec.load(op)
    sizes = dict(benchmark.sizes) | {"B": 2, "T": 7}
    for options in benchmark.options:
        plan = run.Plan(benchmark, [options], [sizes], torch.float64, torch.device("cpu"))
        config = benchmark.described().config(**options)
        inputs = [x.double().requires_grad_() for x in run.draw(plan, config, sizes)]
        names = [argument.name for argument in benchmark.described().inputs(config)]
        every = run.completed(plan, config, sizes)(inputs)
        (expected, *_) = benchmark.described().reference(config, **dict(zip(names, every, strict=True)))
        (found, *_) = benchmark.peer(config, *every)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for a, b in zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("op", MEASURED)
def test_least_work_grows_with_the_sequence(op):
    benchmark = spec.load(op)
    for options in benchmark.options:
        config = benchmark.described().config(**options)
        short, long = (benchmark.work(config, dict(benchmark.sizes) | {"T": t}) for t in (1024, 2048))
        for direction in run.PASSES:
            assert 0 < short[direction].flops < long[direction].flops
            assert 0 < short[direction].elements < long[direction].elements


def test_an_operator_without_a_benchmark_says_so():
    with pytest.raises(ArgumentError, match="op is 'nothing'"):
        spec.load("nothing")
