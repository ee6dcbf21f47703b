"""The CHELA block: steps, causality, merged branches, gradients, training, arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilegen.errors import ArgumentError
from tilegen.nn import Chela

OPTIONS: dict[str, Any] = {"heads": 2, "key_dim": 3, "value_dim": 2, "short_taps": 3, "long_taps": 9}


def layer(seed: int = 0, **options: Any) -> Chela:
    torch.manual_seed(seed)
    return Chela(4, **OPTIONS | options).double()


def rows(batch: int, time: int) -> torch.Tensor:
    return torch.randn(batch, time, 4, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_steps_equal_the_parallel_form() -> None:
    chela, x = layer(), rows(2, 21)
    state = chela.init_state(2)
    for t, y in enumerate(chela(x).unbind(1)):
        row, state = chela.step(x[:, t], state)
        close(row, y)


@pytest.mark.parametrize("start", [1, 2, 8, 15])
def test_steps_go_on_from_a_prefix(start: int) -> None:
    chela, x = layer(branches=(2, 5)), rows(2, 18)
    whole = chela(x)
    y, state = chela.prefill(x[:, :start])
    close(y, whole[:, :start])
    for t in range(start, 18):
        row, state = chela.step(x[:, t], state)
        close(row, whole[:, t])


def test_the_future_changes_nothing_when_causal() -> None:
    chela, x = layer(), rows(2, 13)
    changed = torch.cat([x[:, :7], -2 * x[:, 7:]], 1)
    assert torch.equal(chela(changed)[:, :7], chela(x)[:, :7])


def test_every_position_sees_the_whole_sequence_otherwise() -> None:
    chela, x = layer(causal=False), rows(1, 13)
    changed = x.clone()
    changed[:, -1] += 1
    assert (chela(changed) != chela(x)).any(-1).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_folded_branches_change_nothing(causal: bool) -> None:
    chela, x = layer(branches=(2, 5), causal=causal), rows(2, 11)
    before = chela(x)
    close(chela.fold()(x), before)
    assert not any(name.startswith("branches") for name in chela.state_dict())


def test_gradients_of_all_parameters_are_those_of_finite_differences() -> None:
    chela, x = layer(branches=(2,)), rows(1, 4).requires_grad_()
    names, values = zip(*chela.named_parameters(), strict=True)

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(chela, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


def test_a_saved_layer_loads_again() -> None:
    first, second, x = layer(1, branches=(2,)), layer(2, branches=(2,)), rows(1, 5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_a_stack_learns_to_tell_what_came_before() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(Chela(4, **OPTIONS) for _ in range(2)))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        x = torch.randn(8, 16, 4)
        loss = (net(x)[:, 1:] - x[:, :-1]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


CASES = {
    "no heads": (lambda: Chela(8, heads=0), "heads is 0, must be an integer of at least 1"),
    "no taps": (lambda: Chela(8, long_taps=0), "long_taps is 0, must be"),
    "empty branch": (lambda: Chela(8, branches=(3, 0)), r"branches\[1\] is 0, must be"),
    "causal text": (lambda: Chela(8, causal="no"), "causal is 'no', must be True or False"),  # type: ignore[arg-type]
    "other channels": (lambda: layer()(torch.zeros(2, 3, 5)), r"x has shape \[2, 3, 5\], must be \[B, T, C\] with C = 4"),
    "step of many": (lambda: layer().step(rows(2, 3), layer().init_state(2)), r"x has shape \[2, 3, 4\], must be \[B, C\]"),
    "bidirectional state": (lambda: layer(causal=False).init_state(2), "init_state is called on a layer with causal=False"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
