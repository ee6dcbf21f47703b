"""Random compositions of everything, five stages and more, against torch autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.autodiff.compare import TOLERANCE
from tests.autodiff.executor import build, empty, prim_func
from tests.autodiff.random_graphs import EXTENTS, INSTRUCTIONS, grow
from tilegen.autodiff import gradient
from tilegen.expression import placeholder
from tilegen.expression.printer import graph_text

PARTS, GRAPHS, BATCH, STAGES = 4, 80, 20, 5
"""Four tests of 80 graphs each, compiled 20 at a time; every graph has at least five stages."""

number = st.integers(0, 30)
instruction = st.tuples(st.integers(0, len(INSTRUCTIONS) - 1), number, number, number)
graph = st.tuples(
    st.lists(st.sampled_from(EXTENTS), min_size=1, max_size=3),
    st.lists(instruction, min_size=STAGES, max_size=STAGES + 3),
    st.integers(0, 2**16),
)


def check_batch(programs):
    """Differentiate, compile and compare a list of drawn graphs."""
    graphs = [grow(*program) for program in programs]
    adjoints = []
    for g in graphs:
        assert g.stages >= STAGES
        y = g.nodes[-1]
        cotangent = placeholder(y.shape, "float64", "G")
        inputs = [t for t in g.inputs if str(t.dtype) == "float64"]
        adjoints.append((cotangent, gradient([y.te], inputs, [cotangent], limit=64)))
    functions = {
        f"graph{k}": prim_func([*g.inputs, cotangent], [g.nodes[-1].te, *adjoint])
        for k, (g, (cotangent, adjoint)) in enumerate(zip(graphs, adjoints, strict=True))
    }
    module = build(functions)
    for k, (g, (_, adjoint)) in enumerate(zip(graphs, adjoints, strict=True)):
        deviation = compare(g, adjoint, module[f"graph{k}"])
        message = f"{programs[k]} is off by {deviation:.1e}:\n{graph_text([g.nodes[-1].te, *adjoint])}"
        assert deviation < TOLERANCE, message


def compare(g, adjoint, function):
    """The largest deviation from torch, relative to the largest value where that is above one."""
    y = g.nodes[-1]
    cotangent = torch.randn(y.shape, dtype=torch.float64)
    leaves = [v for v in g.values if v.requires_grad]
    wanted = torch.autograd.grad(y.torch, leaves, cotangent, allow_unused=True)
    wanted = [torch.zeros_like(v) if w is None else w for v, w in zip(leaves, wanted, strict=True)]
    results = [empty(t) for t in [y.te, *adjoint]]
    function(*[v.detach() for v in g.values], cotangent, *results)
    worst = 0.0
    for got, want in zip(results, [y.torch.detach(), *wanted], strict=True):
        assert not got.isnan().any()
        worst = max(worst, float((got - want).abs().max() / want.abs().max().clamp(min=1)))
    return worst


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(PARTS))
def test_random_graphs(part):
    checked = 0

    # A batch is one compiled module: shrinking would compile hundreds. The failing program is in the message instead.
    @seed(part)
    @settings(
        max_examples=GRAPHS // BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(graph, min_size=BATCH, max_size=BATCH))
    def check(programs):
        nonlocal checked
        check_batch(programs)
        checked += len(programs)

    check()
    assert checked >= GRAPHS
