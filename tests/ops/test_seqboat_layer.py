"""The SeqBoat layer against the published one, written token by token in plain torch; its steps; what its router must not do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import nn
from tilegen.errors import ArgumentError
from tilegen.ops.ema import Config, reference
from tilegen.ops.local_attention.reference import rotary

D, Z, H, N, W = 12, 10, 14, 3, 4
CONFIGS = [
    {"causal": causal, "kind": kind, "position": position, "prenorm": prenorm}
    for causal, kind, position, prenorm in itertools.product(
        (True, False), ("softmax", "relu2"), ("rotary", "local"), (True, False)
    )
]
RELATIVE = [
    {"causal": True, "kind": "softmax", "position": "relative", "prenorm": True, "max_distance": 6},
    {"causal": False, "kind": "relu2", "position": "relative", "prenorm": False, "max_distance": 6},
]


def name(config: dict[str, Any]) -> str:
    return "-".join(
        [
            "causal" if config["causal"] else "bidirectional",
            config["kind"],
            config["position"],
            "pre" if config["prenorm"] else "post",
        ]
    )


def layer(dtype: torch.dtype = torch.float32, **config: Any) -> nn.SeqBoat:
    """A layer with parameters large enough that every part of it matters."""
    torch.manual_seed(1)
    made = nn.SeqBoat(D, window=W, key_dim=Z, value_dim=H, orders=N, dtype=dtype, **config)
    with torch.no_grad():
        for parameter in (*made.hx_proj.parameters(), *made.mx_proj.parameters(), *made.h_proj.parameters(), made.gamma):
            parameter.copy_(0.4 * torch.randn_like(parameter))
        if made.bias is not None:
            made.bias.normal_()
    return made


def tokens(batch: int, time: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(batch, time, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def published(m: nn.SeqBoat, x: Tensor) -> Tensor:
    """The layer, one sequence and one active token after the other."""
    rows = m.norm(x) if m.prenorm else x
    (filtered,) = reference.convolution(Config(causal=m.causal), rows, *m._ema())
    e = torch.nn.functional.silu(filtered)
    u, skip = m.hx_proj(e).split([2, D], -1)
    shares = torch.softmax(u / m.log_tau.exp(), -1)
    confidence, choice = shares.max(-1)
    outputs = []
    for b in range(x.shape[0]):
        at = [t for t in range(x.shape[1]) if choice[b, t] == 1]
        added = torch.zeros_like(x[b])
        base = torch.nn.functional.silu(m.mx_proj(e[b]))
        z, r, v = base.split([Z, H, H], -1)
        q, k = z * m.gamma[0] + m.beta[0], z * m.gamma[1] + m.beta[1]
        if m.position == "rotary":
            positions = torch.arange(x.shape[1])[None]
            q, k = (rotary(y[None, :, None], positions)[0, :, 0] for y in (q, k))
        for i, t in enumerate(at):
            seen = [j for j in range(len(at)) if (i - W <= j <= i if m.causal else abs(i - j) <= W)]
            logits = torch.stack([q[t] @ k[at[j]] for j in seen])
            logits = logits * Z**-0.5 if m.kind == "softmax" else logits / (W if m.causal else 2 * W)
            if m.bias is not None:
                reach = m.bias.shape[1] - 1 if m.causal else m.bias.shape[1] // 2
                apart = [j - i if m.position == "local" else max(-reach, min(reach, at[j] - t)) for j in seen]
                logits = logits + torch.stack([m.bias[0, reach + n] for n in apart])
            weights = torch.softmax(logits, 0) if m.kind == "softmax" else torch.relu(logits).square()
            g = m.h_proj((weights @ v[[at[j] for j in seen]]) * r[t])
            added = added.index_put((torch.tensor([t]),), (confidence[b, t] * g)[None])
        outputs.append(torch.nn.functional.silu(skip[b] + added + x[b]))
    y = torch.stack(outputs)
    return y if m.prenorm else m.norm(y)


@pytest.mark.parametrize("config", [*CONFIGS, *RELATIVE], ids=name)
def test_the_layer_is_the_published_one(config: dict[str, Any]) -> None:
    m, x = layer(**config), tokens(3, 23)
    active = m.activity(x)
    assert active.any()
    assert not active.all()
    y, expected = m(x), published(m, x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[15], RELATIVE[1]], ids=name)
def test_gradients_are_those_of_the_published_layer(config: dict[str, Any]) -> None:
    m, x = layer(torch.float64, **config), tokens(2, 17, torch.float64).requires_grad_()
    seed = tokens(2, 17, torch.float64, seed=9)
    leaves = [x, *m.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, leaves, seed) for y in (m(x), published(m, x))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_skipped_tokens_send_no_gradient_to_their_router() -> None:
    m, x = layer(torch.float64, **CONFIGS[0]), tokens(2, 17, torch.float64)
    seen = {}
    m.hx_proj.register_forward_hook(lambda module, given, result: seen.update(u=result) or result.retain_grad())
    m(x).square().sum().backward()
    router, active = seen["u"].grad[..., :2], m.activity(x)
    assert (router[~active] == 0).all()
    assert (router[active] != 0).any(-1).all()


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[13]], ids=name)
def test_gradients_are_those_of_finite_differences(config: dict[str, Any]) -> None:
    """Through the confidence too; tokens keep their decision, since none is near the border."""
    m, x = layer(torch.float64, **config), tokens(1, 9, torch.float64, seed=4).requires_grad_()
    router = (m.hx_proj.weight, m.hx_proj.bias, m.log_tau)
    assert 0 < m.activity(x).sum() < 9
    assert torch.autograd.gradcheck(lambda x, *_: m(x), (x, *router), fast_mode=True)


def test_the_other_sequences_of_a_batch_change_nothing() -> None:
    m, x = layer(**CONFIGS[0]), tokens(3, 23)
    y = m(x)
    torch.testing.assert_close(m(x[[2, 0, 1]]), y[[2, 0, 1]], rtol=1e-6, atol=1e-6)
    for one in range(3):
        torch.testing.assert_close(m(x[one : one + 1]), y[one : one + 1], rtol=1e-6, atol=1e-6)


def test_room_for_fewer_rows_changes_nothing_until_it_is_too_small() -> None:
    m, small, x = layer(**CONFIGS[0]), layer(capacity=0.8, **CONFIGS[0]), tokens(3, 23)
    assert 0 < m.activity(x).sum() <= 0.8 * 69
    torch.testing.assert_close(small(x), m(x), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        small.hx_proj.bias[1] = 50.0
    with pytest.raises(ArgumentError, match=r"capacity is 56, must be at least 69"):
        small(x)


@pytest.mark.parametrize("bias", [-50.0, 50.0], ids=["none-active", "all-active"])
def test_sequences_with_no_and_with_only_active_tokens(bias: float) -> None:
    m, x = layer(**CONFIGS[0]), tokens(2, 23)
    with torch.no_grad():
        m.hx_proj.bias[1] = bias
    assert m.activity(x).float().mean().item() == (bias > 0)
    y, expected = m(x), published(m, x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    m(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2], RELATIVE[0]], ids=name)
@pytest.mark.parametrize("start", [0, 9], ids="prefill{}".format)
def test_steps_equal_the_parallel_form(config: dict[str, Any], start: int) -> None:
    m, x = layer(torch.float64, **config), tokens(2, 20, torch.float64)
    with torch.no_grad():
        whole = m(x)
        first, state = m.prefill(x[:, :start]) if start else (x[:, :0], m.init_state(2))
        steps = [first]
        for t in range(start, 20):
            y, state = m.step(x[:, t], state)
            steps.append(y.unsqueeze(1))
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-10, atol=1e-10)


CASES = {
    "position": (
        lambda: nn.SeqBoat(D, window=W, position="absolute"),
        "position is 'absolute', must be 'rotary' or 'relative' or 'local'",
    ),
    "norm": (lambda: nn.SeqBoat(D, window=W, norm="none"), "norm is 'none', must be 'layer' or 'batch'"),
    "odd keys": (lambda: nn.SeqBoat(D, window=W, key_dim=9), "key_dim is 9, must be even with rotary positions"),
    "dim": (lambda: nn.SeqBoat(0, window=W), "dim is 0, must be an integer of at least 1"),
    "distance": (lambda: nn.SeqBoat(D, window=W, position="relative", max_distance=0), "max_distance is 0, must be"),
    "capacity": (lambda: nn.SeqBoat(D, window=W, capacity=0.0), "capacity is 0.0, must be a share of all tokens"),
    "window": (lambda: nn.SeqBoat(D, window=0), "window is 0, must be"),
    "temperature": (lambda: nn.SeqBoat(D, window=W, temperature=0.0), "temperature is 0.0, must be a finite number above 0"),
    "input": (lambda: nn.SeqBoat(D, window=W)(torch.zeros(2, 3, 5)), r"x has shape \[2, 3, 5\], must be \[B, T, D\] with D = 12"),
    "bidirectional step": (lambda: nn.SeqBoat(D, window=W, causal=False).step(torch.zeros(2, D), None), "step is called on"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refuses(case: str) -> None:
    attempt, words = CASES[case]
    with pytest.raises(ArgumentError, match=words):
        attempt()
