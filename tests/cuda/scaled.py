"""A small operator of one map forward, and one map and one reduction backward."""

from __future__ import annotations

import tilegen
from tilegen import mechanisms
from tilegen.mechanisms import Instance


@tilegen.mechanism(inputs={"x": "B T C", "w": "C"}, outputs={"y": "B T C"})
def toolchain_scaled(config, dims, x, w):
    from tilegen.expression import compute, exp

    return compute(x.shape, lambda b, t, c: exp(x[b, t, c]) * w[c], name="y")


# Tests of what the registry lists may run in the same process.
del mechanisms._REGISTRY["toolchain_scaled"]


def instance(dtype: str = "float32") -> Instance:
    """The operator with 64 channels."""
    mechanism = toolchain_scaled.mechanism
    return Instance(mechanism, mechanism.config(), {"C": 64}, dtype)
