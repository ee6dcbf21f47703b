"""Fast multipole attention: what its benchmark times in PyTorch is the same mathematics.  Nothing here compiles."""

from __future__ import annotations

import pytest
import torch

from tilegen.bench import spec
from tilegen.ops.fast_multipole_attention import Config, reference


@pytest.mark.parametrize("count_bias", [True, False], ids=["counts", "plain"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("time", [1, 7, 16, 61, 64], ids="T{}".format)
def test_the_peer_is_the_reference(time: int, causal: bool, count_bias: bool) -> None:
    config = Config(block=8, rank=2, levels=2, causal=causal, count_bias=count_bias)
    generator = torch.Generator().manual_seed(time)
    inputs = [torch.randn(2, time, 3, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    (peer,) = spec.load("fast_multipole_attention").peer(config, *inputs)
    (expected,) = reference.forward(config, *inputs)
    torch.testing.assert_close(peer, expected, rtol=1e-11, atol=1e-12)


def test_least_work_of_a_query() -> None:
    """18 + 1/2 keys near on average, 1.5 p at every level; one of four tensors written, seven elements more backward."""
    benchmark = spec.load("fast_multipole_attention")
    work = benchmark.work(Config(block=12, rank=2, levels=3), {"B": 1, "T": 10, "H": 2, "D": 4})
    keys = 18.5 + 3 * 3
    assert work["forward"] == spec.Work(20 * (keys * (16 + 4) + 8), 20 * 16)
    assert work["forward+backward"].elements == 20 * 4 * 11
