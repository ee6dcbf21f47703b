"""What nvcc makes of walks with their default sizes: states and elements stay in registers."""

from __future__ import annotations

import pytest

from tests.cuda import walks
from tilegen.build import nvcc
from tilegen.build.library import functions_of
from tilegen.schedules.rule import Gpu

CASES = {
    "elementwise attention of order 2": ("elementwise_attention", {"C": 1024}, {"order": 2}),
    "elementwise attention of order 4": ("elementwise_attention", {"C": 1024}, {"order": 4}),
    "elementwise attention of order 6": ("elementwise_attention", {"C": 1024}, {"order": 6}),
    "ema": ("ema", {"C": 1024, "N": 16}, {}),
    "short-long convolution": ("short_long_conv", {"C": 1024, "Ks": 4}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_default_sizes_do_not_spill(case):
    operator, static, options = CASES[case]
    instance = walks.of(operator, "bfloat16", static, **options)
    for name, (_, function) in functions_of(instance, ("forward", "backward"), Gpu()).items():
        for made in nvcc.examine(walks.kernels_text(instance, function), "sm_90"):
            assert made.stack == made.spill_stores == made.spill_loads == 0, (name, made)
