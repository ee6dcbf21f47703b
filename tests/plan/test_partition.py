"""What becomes one kernel, and what is written between kernels."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plan.graphs import both, chunked, elementwise
from tilegen import mechanisms
from tilegen.errors import PlanError
from tilegen.expression.walkers import size_estimate
from tilegen.mechanisms import Instance
from tilegen.plan.cost import nbytes
from tilegen.plan.plan import SAVED_SHARE, plan
from tilegen.plan.stages import element_bytes
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
    workspace = [arg for arg in function.args if arg.role == "workspace" and len(arg.tensor.shape) == 3]
    over_time = {arg.name.split("_", 2)[-1] for arg in workspace if "T" in str(arg.tensor.shape)}
    assert over_time == {"m", "denominator"}


def test_final_states_in_one_tensor_leave_the_backward_its_walks():
    """The gradient of each is one read of theirs, however many there are: a sum over them would need tiles."""
    mechanism = mechanisms.get("ema")
    backward = plan(Instance(mechanism, mechanism.config(return_state=True), {"C": 8, "N": 12}, "float32")).functions["backward"]
    assert {kernel.pattern for kernel in backward.kernels} <= {"walk", "map"}


@pytest.mark.parametrize("instance", [elementwise("float32"), chunked("float32", 16, D=16, E=16)], ids=["elementwise", "chunked"])
def test_the_choice_of_what_is_saved_is_the_fastest_that_fits(instance):
    found = plan(instance)
    room = SAVED_SHARE * sum(nbytes(a.tensor) for a in found.functions["forward"].args if a.role in ("input", "output"))
    assert len(found.choices) > 1
    assert found.chosen.nbytes <= room
    assert found.chosen.seconds <= 1.02 * min(choice.seconds for choice in found.choices if choice.nbytes <= room)


# Float32 bytes that the forward leaves for the backward at every token and head beyond arguments and results: the operator
# whose memory is small beside its arguments (4 slots) leaves that, one its summaries and the statistics of rows (their 256 bytes of
# arguments and results aside), and the one that counts rows its counts.
LONG = 4096
SAVED_PER_TOKEN = {"bounded_memory_attention": 17.5, "extract": 4, "fast_multipole_attention": 2 * 16 * 4 * 4 * 63 / 2048 + 8}


@pytest.mark.parametrize("name", mechanisms.names())
def test_kernels_and_bytes_saved_per_token(golden, name):
    mechanism = mechanisms.get(name)
    options = {"window": 8} if name == "local_attention" else {}
    static = {size: {"C": 16, "D": 16, "E": 16}.get(size, 4) for size in mechanism.static}
    functions = plan(Instance(mechanism, mechanism.config(**options), static, "float32")).functions
    golden(f"plan/operators/{name}.txt", "\n\n".join(f"{n}\n{plan_text(f)}" for n, f in functions.items()))
    function = functions["forward"]
    over_time = [arg.tensor for arg in function.args if arg.role == "saved" and "T" in str(arg.tensor.shape)]
    places = LONG ** len([size for size in mechanism.symbolic if size in "BTH"])
    taken = sum(size_estimate(t.shape, LONG) * element_bytes(t) for t in over_time)
    assert taken / places == SAVED_PER_TOKEN.get(name, 0)


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
