"""Sums over query tiles are gathered at key tiles: what the plan says, when it is not done, and that numbers are the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.plan.graphs import run
from tilegen import _tvm, mechanisms

_tvm.ensure()

from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan import regroup  # noqa: E402
from tilegen.plan.frames import inner  # noqa: E402
from tilegen.plan.graphs import forward_graph  # noqa: E402
from tilegen.plan.plan import Plan, plan  # noqa: E402
from tilegen.plan.shared_sums import shared_sum  # noqa: E402

SIZES = {"B": 1, "T": 37, "H": 2}
LOCAL = {"D": 8, "E": 8}


def instance(op: str = "local_attention", dtype: str = "float64", static: dict[str, int] = LOCAL, **options: object) -> Instance:
    found = mechanisms.get(op)
    return Instance(found, found.config(**options), static, dtype)


def partial_sums(planned: Plan) -> list[str]:
    """The workspaces of the backward with whole tiles in them."""
    args = planned.functions["backward"].args
    return [arg.name for arg in args if arg.role == "workspace" and len(inner(arg.tensor)) > 1]


@pytest.mark.parametrize("causal", [True, False])
def test_no_sums_of_parts_pass_through_memory(causal: bool) -> None:
    planned = plan(instance(window=16, chunk=8, causal=causal, dtype="bfloat16"))
    backward = planned.functions["backward"]
    assert partial_sums(planned) == []
    assert [[t.op.name.removesuffix("_bfloat16") for t in kernel.writes()][-2:] for kernel in backward.kernels][-1] == ["dk", "dv"]


def test_near_keys_are_gathered_and_summaries_are_summed_in_parts() -> None:
    planned = plan(instance("fast_multipole_attention", static={"D": 8}, dtype="bfloat16", block=8, levels=2))
    parts = partial_sums(planned)
    assert parts and all("near" not in name for name in parts)


def test_windows_that_are_no_whole_tiles_keep_their_parts() -> None:
    """Key tile and query tile then lie askew, and a key tile is no tile of the plan."""
    assert len(partial_sums(plan(instance(window=13, chunk=8)))) == 2


def test_parts_are_kept_where_computing_again_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regroup, "WORTH", 1)
    assert len(partial_sums(plan(instance(window=16, chunk=8)))) == 2


def test_a_graph_without_such_sums_stays_as_it_is() -> None:
    graph = forward_graph(instance(window=16, chunk=8))
    outputs = list(graph.outputs.values())
    assert all(a.op.same_as(b.op) for a, b in zip(regroup.regrouped(outputs, set(graph.inputs.values())), outputs, strict=True))
    assert shared_sum(outputs[0]) is None


@pytest.mark.parametrize("options", [{"window": 16}, {"window": 16, "causal": False}, {"window": 8, "kind": "relu2"}], ids=str)
@pytest.mark.parametrize("time", [1, 8, 37])
def test_gathered_gradients_are_those_of_the_parts(monkeypatch: pytest.MonkeyPatch, options: dict[str, object], time: int) -> None:
    rng, sizes = np.random.default_rng(time), SIZES | {"T": time}
    values = {name: rng.standard_normal((1, time, 2, 8)) for name in ("q", "k", "v", "grad_o")}
    found = []
    for worth in (1, regroup.WORTH):
        monkeypatch.setattr(regroup, "WORTH", worth)
        made = instance(chunk=8, **options)
        planned = plan(made)
        given = dict(values)
        forward = run(made, planned.functions["forward"], given, sizes)
        given |= {name: x for name, x in forward.items() if name.startswith("saved_") or name == "o"}
        found.append(run(made, planned.functions["backward"], given, sizes))
        assert bool(partial_sums(planned)) is (worth == 1)
    for name in ("grad_q", "grad_k", "grad_v"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-12, atol=1e-12)


def test_statistics_of_rows_are_saved_for_the_backward() -> None:
    planned = plan(instance(window=128, dtype="bfloat16", static={"D": 64, "E": 64}))
    assert [t.op.name for t in planned.saved] == ["top", "total"]
