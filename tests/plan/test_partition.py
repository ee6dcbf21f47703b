"""What becomes one kernel, and what is written between kernels."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plan.graphs import both, chunked, elementwise
from tilegen.errors import PlanError
from tilegen.plan.cost import nbytes
from tilegen.plan.plan import plan
from tilegen.plan.text import plan_text


def names(tensors):
    return {t.op.name for t in tensors}


def test_causal_forward_is_one_walk_that_reads_every_input_once():
    (kernel,) = both(elementwise())["forward"].kernels
    assert kernel.pattern == "walk"
    assert names(kernel.anchors) == {"m", "A_0", "A_1", "A_2", "B_0", "B_1", "B_2"}
    assert not kernel.reverse


def test_causal_backward_is_one_walk_in_each_direction():
    kernels = both(elementwise())["backward"].kernels
    assert [(k.pattern, k.reverse) for k in kernels] == [("walk", False), ("walk", True)]


def test_bidirectional_forward_reduces_then_maps():
    kernels = both(elementwise(causal=False))["forward"].kernels
    assert [k.pattern for k in kernels] == ["walk", "walk", "map"]
    assert not any(k.emits for k in kernels[:2])  # sums only: nothing is written at every step


def test_final_states_are_written_without_a_tensor_over_time():
    function = plan(elementwise(return_state=True, initial_state=True), backward=False).functions["forward"]
    over_time = [arg for arg in function.args if arg.role == "workspace" and len(arg.tensor.shape) == 3]
    assert not over_time


def test_gradients_of_the_initial_state_are_latched_not_stored_over_time():
    function = both(elementwise(return_state=True, initial_state=True))["backward"]
    over_time = {arg.name.split("_", 2)[-1] for arg in function.args if arg.role == "workspace" and len(arg.tensor.shape) == 3 and "T" in str(arg.tensor.shape)}
    assert over_time == {"m", "denominator"}


# Bytes a token and channel that the forward leaves for the backward beyond arguments and results; float32.
SAVED = {"causal": 0, "unstabilised": 0, "bidirectional": 0}


@pytest.mark.parametrize("case", SAVED)
def test_saved_bytes_per_token(case):
    options = {"causal": {}, "unstabilised": {"stabilise": False}, "bidirectional": {"causal": False}}[case]
    saved = [a.tensor for a in both(elementwise("float32", **options))["forward"].args if a.role == "saved"]
    over_time = [t for t in saved if len(t.shape) == 3]
    assert sum(nbytes(t) for t in over_time) == SAVED[case]


def test_the_choice_of_what_is_saved_is_the_fastest_of_the_model():
    found = plan(elementwise("float32"))
    assert len(found.choices) > 1
    assert found.chosen.seconds <= 1.02 * min(choice.seconds for choice in found.choices)


def test_a_mechanism_can_name_what_is_saved():
    instance = elementwise("float32")
    named = dataclasses.replace(instance, mechanism=dataclasses.replace(instance.mechanism, saved=("m", "denominator")))
    function = plan(named).functions["forward"]
    assert [arg.tensor.op.name for arg in function.args if arg.role == "saved"] == ["m", "denominator"]
    wrong = dataclasses.replace(instance, mechanism=dataclasses.replace(instance.mechanism, saved=("nonsense",)))
    with pytest.raises(PlanError, match="wants nonsense saved, which is no stage"):
        plan(wrong)


def test_linear_attention_forward_is_one_task_that_walks_its_chunks():
    (kernel,) = both(chunked(chunk=16, D=16, E=16))["forward"].kernels
    assert kernel.pattern == "tile"
    assert (kernel.walked, names(kernel.anchors)) == (2, {"state"})
    assert names(kernel.locals) == {"S", "inside", "KV", "across"}


def test_linear_attention_backward_walks_both_ways_and_stores_no_state():
    function = both(chunked(chunk=16, D=16, E=16))["backward"]
    assert [(k.pattern, k.reverse) for k in function.kernels] == [("tile", False), ("tile", True)]
    assert not [arg for arg in function.args if arg.role in ("saved", "workspace")]


@pytest.mark.parametrize("instance", [elementwise("float32"), chunked("float32", 16, D=16, E=16)], ids=["elementwise", "chunked"])
def test_plan_text(golden, instance):
    golden(f"plan/{instance.mechanism.name}.txt", "\n\n".join(f"{n}\n{plan_text(f)}" for n, f in both(instance).items()))
