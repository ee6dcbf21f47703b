"""The ABC layer: decoding, gradients, and what its parameters are called."""

from __future__ import annotations

import pytest
import torch

from tilegen import nn


def layer(**options: object) -> nn.ABCAttention:
    torch.manual_seed(0)
    return nn.ABCAttention(36, heads=2, slots=10, dtype=torch.float64, key_dim=10, value_dim=11, **options)


@pytest.mark.parametrize("normalizer", ["running", "fixed"])
def test_prefill_and_steps_equal_the_whole(normalizer: str) -> None:
    abc, x = layer(normalizer=normalizer), torch.randn(2, 23, 36, dtype=torch.float64)
    with torch.no_grad():
        whole = abc(x)
        y, state = abc.prefill(x[:, :18])
        rows = [y]
        for t in range(18, 23):
            y, state = abc.step(x[:, t], state)
            rows.append(y.unsqueeze(1))
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-6, atol=1e-7)  # angles are float32
    assert state.position.item() == 23


def test_every_parameter_has_a_gradient() -> None:
    abc = layer()
    abc(torch.randn(2, 20, 36, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in abc.parameters())


def test_a_bidirectional_layer_sees_the_future() -> None:
    x = torch.randn(1, 20, 36, dtype=torch.float64)
    changed = torch.cat([x[:, :10], -x[:, 10:]], 1)
    for causal in (True, False):
        abc = layer(causal=causal)
        assert torch.equal(abc(x)[:, :10], abc(changed)[:, :10]) is causal


def test_names_of_parameters() -> None:
    names = ["g_proj", "k_proj", "o_norm", "o_proj", "q_proj", "s_proj", "v_proj"]
    assert sorted(layer().state_dict()) == [f"{name}.weight" for name in names]
