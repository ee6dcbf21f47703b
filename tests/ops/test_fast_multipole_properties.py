"""Fast multipole attention: what must hold for any input, and the decoding step."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from tilegen import nn, ops
from tilegen.ops import FastMultipoleAttentionState

BLOCK, DIM = 9, 10
EXACT = {"block": BLOCK, "rank": 1, "levels": 2, "count_bias": True}
CAPACITY = BLOCK * 8


def rows(batch: int, time: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, time, 2, DIM, generator=generator, dtype=torch.float64) for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def learned(levels: int, rank: int, seed: int = 5) -> dict[str, Any]:
    """Pooling weights and biases for `levels`."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    found: dict[str, Any] = {}
    for x in "kv":
        found[f"{x}_weights"] = [draw(DIM, rank, BLOCK << level) for level in range(levels)]
        found[f"{x}_biases"] = [draw(DIM, rank) for _ in range(levels)]
    return found


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_keys_constant_within_groups_give_exact_softmax(causal: bool) -> None:
    for time in (CAPACITY, CAPACITY - 1, 4 * BLOCK + 5):
        q, k, v = rows(2, time)
        coarsest = BLOCK * 2  # the groups of level 2, so those of level 1 too
        k = k[:, torch.arange(time) // coarsest * coarsest]
        close(ops.fast_multipole_attention(q, k, v, causal=causal, **EXACT), plain(q, k, v, causal))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_up_to_two_blocks_it_is_plain_attention(causal: bool) -> None:
    for time in (1, 2, BLOCK, BLOCK + 1, 2 * BLOCK):
        q, k, v = rows(2, time)
        close(ops.fast_multipole_attention(q, k, v, causal=causal, **EXACT), plain(q, k, v, causal))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_constant_values_give_a_constant(causal: bool) -> None:
    q, k, v = rows(2, 61)
    v = v[:, :1].expand(v.shape)
    close(ops.fast_multipole_attention(q, k, v, causal=causal, **EXACT), v)


def test_the_future_changes_nothing() -> None:
    time = CAPACITY - 3
    q, k, v = rows(1, time)
    y = ops.fast_multipole_attention(q, k, v, **EXACT)
    for cut in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 1, 4 * BLOCK, time - 1):
        changed = [torch.cat([x[:, :cut], x[:, cut:] * -2.5 + 1], 1) for x in (q, k, v)]
        assert torch.equal(ops.fast_multipole_attention(*changed, **EXACT)[:, :cut], y[:, :cut])


def test_a_prefix_does_not_depend_on_the_length() -> None:
    q, k, v = rows(2, CAPACITY)
    y = ops.fast_multipole_attention(q, k, v, **EXACT)
    for time in (1, BLOCK, 2 * BLOCK + 1, 5 * BLOCK - 1, CAPACITY - 1):
        assert torch.equal(ops.fast_multipole_attention(q[:, :time], k[:, :time], v[:, :time], **EXACT), y[:, :time])


def test_sequences_and_heads_do_not_meet() -> None:
    q, k, v = rows(3, 50)
    y = ops.fast_multipole_attention(q, k, v, **EXACT)
    assert torch.equal(ops.fast_multipole_attention(q[1:2], k[1:2], v[1:2], **EXACT), y[1:2])
    assert torch.equal(ops.fast_multipole_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], **EXACT), y[:, :, 1:])


def test_same_inputs_same_bits() -> None:
    inputs = [x.requires_grad_() for x in rows(2, 50)]
    runs = []
    for _ in range(2):
        y = ops.fast_multipole_attention(*inputs, **EXACT)
        runs.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_levels_that_a_length_needs() -> None:
    wanted = {1: 0, 64: 0, 128: 0, 129: 1, 256: 1, 257: 2, 8192: 6, 8193: 7}
    assert {length: ops.fast_multipole_attention_levels(length) for length in wanted} == wanted


# ---------------------------------------------------------------- decoding


def step_options(kind: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Options of the parallel form, those of the step, and the rank."""
    if kind == "mean":
        return EXACT, {"count_bias": True}, 1
    weights = learned(2, 2)
    return {"block": BLOCK, "rank": 2, "levels": 2, "phantom_keys": True, **weights}, {"phantom_keys": True, **weights}, 2


@pytest.mark.parametrize("kind", ["mean", "learned-phantoms"])
def test_steps_equal_the_parallel_form_and_so_does_the_state(kind: str) -> None:
    parallel, options, rank = step_options(kind)
    q, k, v = rows(2, CAPACITY)
    y = ops.fast_multipole_attention(q, k, v, **parallel)
    state = ops.fast_multipole_attention_init_state(2, 2, DIM, levels=2, block=BLOCK, rank=rank, dtype=torch.float64)
    for i in range(CAPACITY):
        row, state = ops.fast_multipole_attention_step(q[:, i], k[:, i], v[:, i], state, **options)
        close(row, y[:, i])
        if i in (0, BLOCK - 1, 2 * BLOCK, 5 * BLOCK + 2, CAPACITY - 1):
            upto = [x[:, : i + 1] for x in (q, k, v)]
            prefix, after = ops.fast_multipole_attention(*upto, **parallel, return_state=True)
            close(prefix, y[:, : i + 1])
            for got, wanted in zip(state, after, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_steps_go_on_from_the_state_of_the_parallel_form() -> None:
    parallel, options, _ = step_options("learned-phantoms")
    q, k, v = rows(1, CAPACITY)
    y = ops.fast_multipole_attention(q, k, v, **parallel)
    for cut in (1, BLOCK, 3 * BLOCK + 2, 4 * BLOCK, 6 * BLOCK - 1):
        _, state = ops.fast_multipole_attention(q[:, :cut], k[:, :cut], v[:, :cut], **parallel, return_state=True)
        for i in range(cut, min(cut + 3, CAPACITY)):
            row, state = ops.fast_multipole_attention_step(q[:, i], k[:, i], v[:, i], state, **options)
            close(row, y[:, i])


def test_gradients_through_state_and_step_are_those_of_the_parallel_form() -> None:
    parallel, options, _ = step_options("learned-phantoms")
    time = 4 * BLOCK + 2
    inputs = [x.requires_grad_() for x in rows(1, time)]
    inputs += [x.requires_grad_() for name in ("k_weights", "v_weights", "k_biases", "v_biases") for x in parallel[name]]
    q, k, v = inputs[:3]
    y = ops.fast_multipole_attention(q, k, v, **parallel)
    cut = time - 1
    before, state = ops.fast_multipole_attention(q[:, :cut], k[:, :cut], v[:, :cut], **parallel, return_state=True)
    last, _ = ops.fast_multipole_attention_step(q[:, cut], k[:, cut], v[:, cut], state, **options)
    seed = torch.randn_like(y)
    got = torch.autograd.grad(torch.cat([before, last.unsqueeze(1)], 1), inputs, seed)
    for a, b in zip(got, torch.autograd.grad(y, inputs, seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_state_survives_being_saved() -> None:
    parallel, options, _ = step_options("mean")
    q, k, v = rows(2, 31)
    _, state = ops.fast_multipole_attention(q, k, v, **parallel, return_state=True)
    file = io.BytesIO()
    torch.save(tuple(state), file)
    file.seek(0)
    again = FastMultipoleAttentionState(*torch.load(file, weights_only=True))
    first, second = (ops.fast_multipole_attention_step(q[:, 0], k[:, 0], v[:, 0], s, **options)[0] for s in (state, again))
    assert torch.equal(first, second)


def test_the_layer_steps_as_it_attends() -> None:
    layer = nn.FastMultipoleAttention(2 * DIM, 2, levels=2, block=BLOCK, rank=2, phantom_keys=True, dtype=torch.float64)
    x = torch.randn(2, 40, 2 * DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    start, state = layer.prefill(x[:, :37])
    close(start, y[:, :37])
    for i in range(37, 40):
        row, state = layer.step(x[:, i], state)
        close(row, y[:, i])
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_the_layer_without_levels_of_use_still_starts_empty() -> None:
    layer = nn.FastMultipoleAttention(2 * DIM, 2, levels=2, block=BLOCK, rank=2, phantom_keys=True, dtype=torch.float64)
    state = layer.init_state(2)
    assert state.near_k.shape == (2, 2, 2 * BLOCK, DIM) and state.far_k.shape == (2, 2, 2, 4, 2, DIM)
    assert [name for name, _ in layer.named_parameters()][:4] == ["qkv_proj.weight", "qkv_proj.bias", "o_proj.weight", "o_proj.bias"]
    assert layer.k_weights[1].shape == (DIM, 2, 2 * BLOCK) and layer.v_biases[0].shape == (DIM, 2)
