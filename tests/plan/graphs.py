"""Graphs and numbers that the planner's tests share: a mechanism of tiles, and running a plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilegen import mechanisms
from tilegen.build import pipeline
from tilegen.build.scheduled import schedule
from tilegen.build.target import resolve
from tilegen.bundle import shapes
from tilegen.expression import compute, const, floordiv, floormod, if_then_else, reduce_axis, reduce_sum, scan
from tilegen.mechanisms import ArgSpec, Instance, Mechanism
from tilegen.plan.plan import FunctionPlan, plan, shape_text


@dataclass(frozen=True)
class Chunked:
    """Causal linear attention in chunks."""

    chunk: int = 4


def chunked_attention(config, dims, q, k, v):
    """tril(Q K^T) V within a chunk, Q S with the state S of the chunks before."""
    B, T, H, D, E, C = dims.B, dims.T, dims.H, dims.D, dims.E, config.chunk
    nc, zero = floordiv(T + (C - 1), C), const(0, dims.acc)

    def chunks(x, n, name):
        return compute(
            (B, H, nc, C, n),
            lambda b, h, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, h, d].astype(dims.acc), zero),
            name=name,
        )

    Q, K, V = chunks(q, D, "Q"), chunks(k, D, "K"), chunks(v, E, "V")
    d, j, t, a = (reduce_axis(n, name) for n, name in ((D, "d"), (C, "j"), (C, "t"), (D, "a")))
    S = compute((B, H, nc, C, C), lambda b, h, c, i, j: reduce_sum(Q[b, h, c, i, d] * K[b, h, c, j, d], d), name="S")
    P = compute((B, H, nc, C, C), lambda b, h, c, i, j: if_then_else(j <= i, S[b, h, c, i, j], zero), name="P")
    inside = compute((B, H, nc, C, E), lambda b, h, c, i, e: reduce_sum(P[b, h, c, i, j] * V[b, h, c, j, e], j), name="inside")
    KV = compute((B, H, nc, D, E), lambda b, h, c, d, e: reduce_sum(K[b, h, c, t, d] * V[b, h, c, t, e], t), name="KV")
    state = scan(KV, axis=2, exclusive=True, name="state")
    across = compute((B, H, nc, C, E), lambda b, h, c, i, e: reduce_sum(Q[b, h, c, i, a] * state[b, h, c, a, e], a), name="across")
    O = compute((B, H, nc, C, E), lambda b, h, c, i, e: inside[b, h, c, i, e] + across[b, h, c, i, e], name="O")  # noqa: E741
    return (compute((B, T, H, E), lambda b, t, h, e: O[b, h, floordiv(t, C), floormod(t, C), e].astype(dims.io), name="y"),)


def attention_specs(config):
    return tuple(ArgSpec(n, ("B", "T", "H", x)) for n, x in (("q", "D"), ("k", "D"), ("v", "E")))


CHUNKED = Mechanism(
    name="chunked_attention_of_the_tests",
    config=Chunked,
    symbolic=("B", "T"),
    static=("H", "D", "E"),
    inputs=attention_specs,
    outputs=lambda config: (ArgSpec("y", ("B", "T", "H", "E")),),
    expression=chunked_attention,
    reference=lambda config, **tensors: (),
    representative={"B": 2, "T": 64},
)


def chunked(dtype="float64", chunk=4, **static):
    return Instance(CHUNKED, Chunked(chunk), {"H": 2, "D": 3, "E": 5} | static, dtype)


def elementwise(dtype="float64", channels=8, **options):
    found = mechanisms.get("elementwise_attention")
    return Instance(found, found.config(**{"order": 2} | options), {"C": channels}, dtype)


def run(instance: Instance, function: FunctionPlan, values: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """All arguments of a function by name after running it, scheduled with its defaults, on poisoned results."""
    target = resolve()
    lib = pipeline.compile(schedule(instance, function, target).mod, target.tvm)
    arrays = {}
    for arg in function.args:
        shape = [d if isinstance(d, int) else shapes.evaluate(d, sizes) for d in shape_text(arg.tensor)]
        given = values.get(arg.name)
        arrays[arg.name] = aligned(np.full(shape, np.nan, str(arg.tensor.dtype)) if given is None else given)
    lib["main"](*arrays.values())
    return arrays


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes, as compiled code expects."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def both(instance: Instance):
    """Forward and backward plans."""
    return plan(instance).functions
