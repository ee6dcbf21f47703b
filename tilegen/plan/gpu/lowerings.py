"""Which lowering serves a pattern."""

from __future__ import annotations

from tilegen.plan.gpu.func import Lowering
from tilegen.plan.gpu.map import lower_map
from tilegen.plan.gpu.reduce import lower_reduce
from tilegen.plan.gpu.scatter import lower_scatter
from tilegen.plan.gpu.shares import lower_shares
from tilegen.plan.gpu.walk import lower_walk
from tilegen.plan.gpu.walk_retrace import lower_retrace

LOWERINGS: dict[str, Lowering] = {
    "map": lower_map, "reduce": lower_reduce, "walk": lower_walk, "retrace": lower_retrace, "tile": lower_shares,
    "scatter": lower_scatter,
}  # fmt: skip
