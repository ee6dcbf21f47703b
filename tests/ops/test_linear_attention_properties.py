"""Linear attention: what must hold for any input."""

from __future__ import annotations

import io
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from tests.ops import linear_attention_cases as cases
from tilegen import ops
from tilegen.mechanisms import Instance
from tilegen.ops.linear_attention import MECHANISM, Config

# One compiled library serves every batch, length and number of heads, so all examples share a few of them.
quick = settings(max_examples=30, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 40))
seeds = st.integers(0, 2**31)

FULL: dict[str, Any] = {"decay": "token", "normalize": True, "initial_state": True, "return_state": True}
PLAIN: dict[str, Any] = {}
BOTH_WAYS: dict[str, Any] = {"causal": False, "normalize": True}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def part(tensors: dict[str, torch.Tensor], start: int, stop: int | None) -> dict[str, torch.Tensor]:
    """Positions start to stop; states as they are."""
    return {name: x if name in ("S", "z") else x[:, start:stop] for name, x in tensors.items()}


@quick
@given(shapes, seeds)
def test_constant_values_give_a_constant(shape: tuple[int, int], seed: int) -> None:
    for options in (FULL, BOTH_WAYS):
        tensors = cases.rows(*shape, options, seed=seed)
        tensors["v"] = tensors["v"][:, :1].expand(tensors["v"].shape)
        if "S" in tensors:
            tensors["S"] = tensors["z"].unsqueeze(-1) * tensors["v"][:, 0].unsqueeze(2)
        close(cases.call(options, **tensors)[0], tensors["v"])


@quick
@given(shapes, seeds)
def test_the_first_normalised_row_is_the_first_value(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, FULL, seed=seed)
    tensors["S"], tensors["z"] = torch.zeros_like(tensors["S"]), torch.zeros_like(tensors["z"])
    close(cases.call(FULL, **tensors)[0][:, 0], tensors["v"][:, 0])


@quick
@given(shapes, seeds, st.data())
def test_the_future_changes_nothing(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, shape[1]))
    tensors = cases.rows(*shape, FULL, seed=seed)
    changed = dict(tensors)
    for name in ("q", "k", "v", "decay"):
        changed[name] = torch.cat([tensors[name][:, :cut], tensors[name][:, cut:] * 2.5], 1)
    assert torch.equal(cases.call(FULL, **changed)[0][:, :cut], cases.call(FULL, **tensors)[0][:, :cut])


@quick
@given(shapes, seeds)
def test_outputs_are_linear_in_the_values(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, PLAIN, seed=seed)
    other = torch.randn_like(tensors["v"])
    (first,), (second,) = cases.call(PLAIN, **tensors), cases.call(PLAIN, **tensors | {"v": other})
    close(cases.call(PLAIN, **tensors | {"v": 2 * tensors["v"] - other})[0], 2 * first - second)


@quick
@given(shapes, seeds)
def test_without_a_mask_order_does_not_matter(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, BOTH_WAYS, seed=seed)
    shuffle = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    mixed = tensors | {"k": tensors["k"][:, shuffle], "v": tensors["v"][:, shuffle]}
    close(cases.call(BOTH_WAYS, **mixed)[0], cases.call(BOTH_WAYS, **tensors)[0])


@quick
@given(shapes, seeds, st.data())
def test_sequences_and_heads_do_not_meet(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    tensors = cases.rows(*shape, FULL, seed=seed)
    b, h = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, cases.H - 1))
    head = {"S": 1, "z": 1}
    alone = {name: x[b : b + 1].narrow(head.get(name, 2), h, 1) for name, x in tensors.items()}
    both = cases.call(FULL, **alone), cases.call(FULL, **tensors)
    assert torch.equal(both[0][0], both[1][0][b : b + 1, :, h : h + 1])
    assert torch.equal(both[0][1], both[1][1][b : b + 1, h : h + 1])


@quick
@given(shapes, seeds, st.data())
def test_parts_joined_by_the_state_equal_the_whole(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    tensors = cases.rows(*shape, FULL, seed=seed)
    cut = data.draw(st.integers(0, shape[1]))
    whole = cases.call(FULL, **tensors)
    state, parts = {name: tensors[name] for name in ("S", "z")}, []
    for piece in (part(tensors, 0, cut), part(tensors, cut, None)):
        if piece["q"].shape[1]:
            o, S, z = cases.call(FULL, **piece | state)
            state = {"S": S, "z": z}
            parts.append(o)
    close(torch.cat(parts, 1), whole[0])
    close(state["S"], whole[1])
    close(state["z"], whole[2])


@settings(quick, max_examples=15)
@given(st.tuples(st.integers(1, 2), st.integers(1, 12)), seeds)
def test_steps_equal_the_parallel_form(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, FULL, seed=seed)
    state: Any = ops.LinearAttentionState(tensors["S"], tensors["z"])
    for i, o in enumerate(cases.call(FULL, **tensors)[0].unbind(1)):
        row, state = ops.linear_attention_step(*[tensors[x][:, i] for x in "qkv"], state, decay=tensors["decay"][:, i])
        close(row, o)


@settings(quick, max_examples=15)
@given(st.tuples(st.integers(1, 2), st.integers(1, 12)), seeds)
def test_plain_steps_equal_the_parallel_form(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, PLAIN, seed=seed)
    state = ops.linear_attention_init_state(shape[0], cases.H, cases.D, cases.E, dtype=torch.float64)
    for i, o in enumerate(cases.call(PLAIN, **tensors)[0].unbind(1)):
        row, state = ops.linear_attention_step(*[tensors[x][:, i] for x in "qkv"], state)
        close(row, o)


@settings(quick, max_examples=5)
@given(shapes, seeds)
def test_a_state_survives_being_saved(shape: tuple[int, int], seed: int) -> None:
    tensors = cases.rows(*shape, FULL, seed=seed)
    _, S, z = cases.call(FULL, **tensors)
    file = io.BytesIO()
    torch.save((S, z), file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    runs = [cases.call(FULL, **tensors | dict(zip(("S", "z"), state, strict=True)))[0] for state in ((S, z), again)]
    assert torch.equal(*runs)


@settings(quick, max_examples=10)
@given(shapes, seeds)
def test_same_inputs_same_bits(shape: tuple[int, int], seed: int) -> None:
    tensors = {name: x.requires_grad_() for name, x in cases.rows(*shape, FULL, seed=seed).items()}
    runs = []
    for _ in range(2):
        made = cases.call(FULL, **tensors)
        runs.append((*made, *torch.autograd.grad(sum(y.square().sum() for y in made), list(tensors.values()))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_nothing_but_arguments_is_in_memory() -> None:
    """Both passes keep their states on chip: one state for each chunk would take as much memory as q, k and v."""
    from tilegen.plan.plan import plan

    planned = plan(Instance(MECHANISM, Config(), {"D": 64, "E": 64}, "bfloat16"))
    roles = {arg.role for function in planned.functions.values() for arg in function.args}
    assert roles == {"input", "output", "grad_output", "grad_input"}
