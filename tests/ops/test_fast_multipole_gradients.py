"""Fast multipole attention: values and gradients in float64 against the dense masked definition and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import ops
from tilegen.ops.fast_multipole_attention import Config, reference, weight_specs

DIM = 11
CONFIGS = {
    "causal-mean": Config(block=12, rank=3, levels=2, count_bias=True),
    "causal-learned": Config(block=9, rank=2, levels=3, learned=True),
    "causal-phantoms": Config(block=9, rank=4, levels=1, learned=True, count_bias=True, phantom_keys=True, scale=0.5),
    "bidirectional-mean": Config(block=10, rank=5, levels=2, causal=False, count_bias=True),
    "bidirectional-learned": Config(block=9, rank=2, levels=2, learned=True, causal=False),
}


def arguments(config: Config, batch: int, time: int, dim: int = DIM) -> dict[str, Tensor]:
    """Random q, k, v and weights by the names of the mechanism, all of which require grad."""
    generator = torch.Generator().manual_seed(time)
    shapes = dict.fromkeys("qkv", (batch, time, 2, dim))
    shapes |= {spec.name: tuple(dim if n == "D" else int(n) for n in spec.shape) for spec in weight_specs(config)}
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return {name: draw(shape).requires_grad_() for name, shape in shapes.items()}


def attend(config: Config, given: dict[str, Tensor], **more: Any) -> Any:
    """The public operator with the options of a config."""
    names = ("block", "rank", "levels", "causal", "count_bias", "phantom_keys", "scale")
    options = {name: getattr(config, name) for name in names} | more
    if config.learned:
        lists = {"k_weights": "wk", "v_weights": "wv", "k_biases": "bk", "v_biases": "bv"}
        options |= {name: [given[f"{short}{level}"] for level in range(1, config.levels + 1)] for name, short in lists.items()}
    return ops.fast_multipole_attention(given["q"], given["k"], given["v"], **options)


def lengths(config: Config) -> list[int]:
    """m 2^k up to the capacity, and lengths beside them."""
    powers = [config.block << k for k in range(config.levels + 2)]
    return sorted({1, 2, *powers, config.block - 1, *(n + 1 for n in powers[:-1]), powers[-1] - 1, powers[-1] * 2 // 3})


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_are_those_of_the_dense_definition(name: str) -> None:
    config = CONFIGS[name]
    for time in lengths(config):
        given = arguments(config, 2, time)
        y = attend(config, given)
        (expected,) = reference.forward(config, **given)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12, msg=lambda text, time=time: f"T={time}: {text}")
        seed, inputs = torch.randn_like(y), list(given.values())
        got = torch.autograd.grad(y, inputs, seed)
        wanted = torch.autograd.grad(expected, inputs, seed, allow_unused=True, materialize_grads=True)
        for argument, a, b in zip(given, got, wanted, strict=True):
            scale = 1 + b.abs().max().item()
            torch.testing.assert_close(
                a, b, rtol=0, atol=1e-12 * scale, msg=lambda text, of=(time, argument): f"T={of[0]}, gradient of {of[1]}: {text}"
            )


@pytest.mark.parametrize("name", ["causal-learned", "bidirectional-learned"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """In random directions, which is what `fast_mode` does; the longest list is read from T = 4 m + 1 on."""
    config = CONFIGS[name]
    given = arguments(config, 1, 4 * config.block + 1)
    run = lambda *tensors: attend(config, dict(zip(given, tensors, strict=True)))
    assert torch.autograd.gradcheck(run, tuple(given.values()), fast_mode=True)


def test_mean_pooling_gradients_are_those_of_finite_differences() -> None:
    config = CONFIGS["causal-mean"]
    given = arguments(config, 1, 4 * config.block + 1)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(config, {"q": q, "k": k, "v": v}), tuple(given.values()), fast_mode=True)


# ---------------------------------------------------------------- the definition itself; nothing compiles


def listed(config: Config, i: int, time: int) -> list[tuple[int, int]]:
    """(level, group) that query i attends to, level 0 being tokens: the interaction lists as the paper has them."""
    m, own = config.block, i // config.block
    nearby = range(own - 1, own + (1 if config.causal else 2))
    found = [(0, j) for block in nearby for j in range(block * m, (block + 1) * m) if 0 <= j < time and (j <= i or not config.causal)]
    for level in range(1, config.levels + 1):
        w = config.width(level)
        B = i // w
        groups = [B - 2] if B % 2 == 0 else [B - 3, B - 2]
        if not config.causal:
            groups += [B + 2, B + 3] if B % 2 == 0 else [B + 2]
        found += [(level, g) for g in groups if g >= 0 and g * w < time]
    return found


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("time", [1, 3, 24, 29, 48], ids="T{}".format)
def test_the_lists_hold_every_token_once(causal: bool, time: int) -> None:
    config = Config(block=3, rank=1, levels=3, causal=causal)
    for i in range(time):
        tokens: list[int] = []
        for level, g in listed(config, i, time):
            w = 1 if level == 0 else config.width(level)
            tokens += range(g * w, min((g + 1) * w, time))
        assert sorted(tokens) == list(range(i + 1 if causal else time))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_reference_attends_to_the_lists(causal: bool) -> None:
    config = Config(block=3, rank=1, levels=3, causal=causal, count_bias=True)
    time = 41
    given = arguments(config, 1, time, 5)
    (y,) = reference.forward(config, **given)
    q, k, v = (given[name][0] for name in "qkv")
    for i in range(time):
        spans = [(g, g + 1) if level == 0 else (g * config.width(level), (g + 1) * config.width(level)) for level, g in listed(config, i, time)]
        keys, values = (torch.stack([x[a:b].mean(0) for a, b in spans]) for x in (k, v))
        counts = torch.tensor([min(b, time) - a for a, b in spans], dtype=torch.float64)
        weights = (torch.einsum("hd,nhd->hn", q[i], keys) * 5**-0.5 + counts.log()).softmax(-1)
        torch.testing.assert_close(y[0, i], torch.einsum("hn,nhd->hd", weights, values), rtol=1e-12, atol=1e-12)
