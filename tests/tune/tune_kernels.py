"""A small walk kernel to search: running states over time, then one row out; the shape of what the planner emits."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
from tvm import tirx  # noqa: E402
from tvm.script import tirx as T  # noqa: E402
from tvm.target import Target  # noqa: E402

from tilegen.tune.records import RecordKey  # noqa: E402
from tilegen.tune.task import Task  # noqa: E402

C = 64
HOST = Target({"kind": "llvm", "num-cores": 2})
KEY = RecordKey("walk", {}, {"C": C}, "float32", "forward", "walk0", "test.walk", 1, "x86_64-v4")


def module(B: int | None = None, N: int | None = None) -> tvm.IRModule:
    """y_t = (sum_{j<=t} w_j v_j) / (sum_{j<=t} w_j), w_j = 1 / (1 + k_j^2): q, k, v -> y [B, N, C]; None: symbolic."""
    b, n = B or tirx.Var("B", "int32"), N or tirx.Var("N", "int32")

    @T.prim_func(s_tir=True)
    def main(k: T.handle, v: T.handle, y: T.handle):
        K = T.match_buffer(k, (b, n, C), "float32")
        V = T.match_buffer(v, (b, n, C), "float32")
        Y = T.match_buffer(y, (b, n, C), "float32")
        with T.sblock("root"):
            a0 = T.sblock_alloc_buffer((b, C), "float32")
            b0 = T.sblock_alloc_buffer((b, C), "float32")
            for i, c, t in T.grid(b, C, n):
                with T.sblock("upd"):
                    vb, vc, vt = T.axis.remap("SSR", [i, c, t])
                    with T.init():
                        a0[vb, vc] = T.float32(0)
                        b0[vb, vc] = T.float32(0)
                    w: T.let[T.float32] = T.float32(1) / (T.float32(1) + K[vb, vt, vc] * K[vb, vt, vc])
                    a0[vb, vc] = a0[vb, vc] + w * V[vb, vt, vc]
                    b0[vb, vc] = b0[vb, vc] + w
                with T.sblock("emit"):
                    vb, vc, vt = T.axis.remap("SSS", [i, c, t])
                    Y[vb, vt, vc] = a0[vb, vc] / b0[vb, vc]

    return tvm.IRModule({"main": main})


def pick(sch: Any, candidates: list[int]) -> Any:
    return sch.sample_categorical(candidates, [1 / len(candidates)] * len(candidates))


def rule(sch: Any) -> None:
    """Channel tile, vector width, unrolling of time."""
    tile, width, unroll = pick(sch, [16, 32, 64]), pick(sch, [16, 8, 32]), pick(sch, [1, 4, 8])
    upd = sch.get_sblock("upd")
    b, c, t = sch.get_loops(upd)
    outer, rest = sch.split(c, [None, tile])
    middle, lanes = sch.split(rest, [None, width])
    time, again = sch.split(t, [None, unroll])
    sch.reorder(b, outer, time, middle, again, lanes)
    sch.parallel(sch.fuse(b, outer))
    sch.vectorize(lanes)
    init = sch.decompose_reduction(upd, time)
    sch.vectorize(sch.get_loops(init)[-1])


def wide_rule(sch: Any) -> None:
    """A space of 2 000 points for tests that never build: annotations that a formula turns into a cost."""
    channel, time = (pick(sch, [1, 2, 4, 8, 16, 32, 64]) for _ in range(2))
    unroll, batch = pick(sch, [0, 16, 64, 256, 512, 1024]), pick(sch, [1, 2, 4, 8, 16, 32])
    b, c, t = sch.get_loops(sch.get_sblock("upd"))
    c0, c1 = sch.split(c, [None, channel])
    t0, t1 = sch.split(t, [None, time])
    sch.reorder(b, c0, t0, c1, t1)
    b0, _ = sch.split(b, [None, batch])
    sch.annotate(b0, "pragma_auto_unroll_max_step", unroll)
    sch.parallel(b0)


def reference(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same in float64."""
    w = 1 / (1 + inputs["K"].astype(np.float64) ** 2)
    return {"Y": np.cumsum(w * inputs["V"].astype(np.float64), 1) / np.cumsum(w, 1)}


def task(**changes: Any) -> Task:
    """The kernel above as a tuning task."""
    parts: dict[str, Any] = {
        "key": KEY,
        "mod": module(2, 64),
        "symbolic": module(),
        "rule": rule,
        "reference": reference,
        "sizes": {"B": 2, "N": 64},
        "ragged": {"B": 3, "N": 13},
    }
    return Task(**(parts | changes))
