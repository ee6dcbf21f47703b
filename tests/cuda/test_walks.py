"""Walks as CUDA text: states exchanged between groups of steps, whatever the scans are and however long the axis is."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda import walks
from tests.cuda.emulator.module import ORDERS
from tilegen.errors import ScheduleError
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.walk_strata import strata
from tilegen.plan.plan import plan

ROUND = {"channels": 8, "width": 2, "steps": 4, "groups": 4}
"""16 steps a round."""


def every_scan(dtype: str = "float64", C: int = 8, reverse: bool = False) -> Instance:
    mechanism = walks.every_scan.mechanism
    return Instance(mechanism, mechanism.config(reverse=reverse), {"C": C}, dtype)


def check_every_scan(T: int, reverse: bool = False, C: int = 8, order: str = "forward", **chosen: int) -> None:
    instance = every_scan(C=C, reverse=reverse)
    function = plan(instance, backward=False).functions["forward"]
    torch.manual_seed(T)
    x, d = torch.randn(2, T, C, dtype=torch.float64), torch.rand(2, T, C, dtype=torch.float64)
    s, r = torch.randn(2, C, dtype=torch.float64), (torch.rand(2, T) < 0.2).int()
    got = walks.run(instance, function, {"x": x, "d": d, "s": s, "r": r}, {"B": 2, "T": T}, order=order, **chosen)
    for name, want in walks.every_scan_reference(x, d, s, r, reverse).items():
        torch.testing.assert_close(got[name], want, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("T", [1, 15, 16, 53], ids=lambda T: f"T{T}")
def test_scans_of_every_kind(T: int, reverse: bool) -> None:
    check_every_scan(T, reverse, **ROUND)


@pytest.mark.parametrize("order", ORDERS)
def test_threads_may_run_in_any_order(order: str) -> None:
    check_every_scan(37, order=order, **ROUND)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 2, 16], ids=lambda groups: f"G{groups}")
def test_any_number_of_groups_loaded_any_time_ahead(groups: int, ahead: int) -> None:
    check_every_scan(41, **{**ROUND, "groups": groups, "ahead": ahead})


@pytest.mark.parametrize("C", [1, 3, 12], ids=lambda C: f"C{C}")
def test_channels_that_fill_no_tile(C: int) -> None:
    check_every_scan(20, C=C, **{**ROUND, "width": 2 if C == 12 else 1})


def test_a_scan_of_scans_is_resolved_after_them() -> None:
    function = plan(every_scan(), backward=False).functions["forward"]
    walk = next(kernel for kernel in function.kernels if any(a.op.name == "above" for a in kernel.anchors))
    found = strata(walk, {arg.tensor for arg in function.args if arg.role == "input"})
    names = [{scan.op.name for scan in stratum.scans} for stratum in found]
    assert len(names) == 2
    assert names[1] == {"above"}
    assert {scan.op.name for scan in found[1].below} == {"least", "before"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"channels": 4, "width": 4, "groups": 2}, "groups must be 1 or at least the width"),
        ({"channels": 1, "width": 2}, "width must divide the channels of a block"),
        ({"channels": 8, "width": 1, "groups": 256}, "2048 threads, must be at most 1024"),
        ({"channels": 64, "width": 4, "groups": 64}, "bytes of shared memory, must be at most"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(chosen: dict[str, int], message: str) -> None:
    instance = every_scan()
    with pytest.raises(ScheduleError, match=message):
        walks.text(instance, plan(instance, backward=False).functions["forward"], **chosen)


def test_what_came_before_a_reset_does_not_come_through() -> None:
    instance = every_scan()
    function = plan(instance, backward=False).functions["forward"]
    x, d = torch.ones(1, 40, 8, dtype=torch.float64), torch.full((1, 40, 8), 0.5, dtype=torch.float64)
    x[:, 3], x[:, 7] = torch.inf, torch.nan
    r = torch.zeros(1, 40, dtype=torch.int32)
    r[:, 21] = 1
    got = walks.run(instance, function, {"x": x, "d": d, "s": x[:, 0], "r": r}, {"B": 1, "T": 40}, **ROUND)
    assert got["packed"][:, 7:21].isnan().all()
    torch.testing.assert_close(got["packed"][0, 21:, 0], 2 - 0.5 ** torch.arange(19, dtype=torch.float64))


CASES = {
    "elementwise attention": ("elementwise_attention", {"C": 40}, {"order": 2}),
    "elementwise attention of order 6": ("elementwise_attention", {"C": 8}, {"order": 6}),
    "bidirectional elementwise attention": ("elementwise_attention", {"C": 8}, {"order": 2, "causal": False}),
    "ema": ("ema", {"C": 8, "N": 3}, {}),
    "bidirectional ema": ("ema", {"C": 8, "N": 2}, {"causal": False}),
    "short-long convolution": ("short_long_conv", {"C": 8, "Ks": 3}, {}),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_operators_forward_and_backward(case: str, dtype: str) -> None:
    operator, static, options = CASES[case]
    instance = walks.of(operator, dtype, static, **options)
    for name, result, exact, single in walks.gradients(instance, {"B": 2, "T": 70, "Kl": 6}, groups=4):
        assert walks.within(result, exact, single), f"{name}: {(result.double() - exact).abs().max():.2e}"


def test_repeats_are_bit_equal_in_every_order() -> None:
    instance = walks.of("elementwise_attention", "bfloat16", {"C": 16}, order=2)
    function = plan(instance).functions["forward"]
    torch.manual_seed(0)
    values = {name: torch.randn(1, 70, 16) for name in "qkv"}
    results = [walks.run(instance, function, values, {"B": 1, "T": 70}, order=order, groups=4)["y"] for order in ORDERS]
    assert all(torch.equal(results[0], y) for y in results[1:])


def test_every_input_is_loaded_once_a_round() -> None:
    instance = walks.of("elementwise_attention", "bfloat16", {"C": 64}, order=2)
    source = walks.text(instance, plan(instance).functions["forward"], ahead=0)
    body = source[source.rindex("__launch_bounds__") :]
    body = body[body.index("{") : body.index("tvm/ffi/c_api.h")]
    # Once for groups that are whole, once for the ragged end.
    assert [len(re.findall(rf"\b{name}_ptr\b", body)) for name in "qkv"] == [2, 2, 2]
