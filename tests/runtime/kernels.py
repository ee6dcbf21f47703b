"""A small operator compiled by hand, so that bundles are tested apart from the compiler: out = x * w + 1."""

from __future__ import annotations

from pathlib import Path

import tilegen
from tilegen import _tvm
from tilegen.bundle import Argument, EntryPoint, Manifest, machine, pack


def build(folder: Path, *, dtype: str = "float32", parallel: bool = True, plus: int = 1) -> Manifest:
    """Write a sealed bundle of forward, backward and step into `folder`: out = x * w + plus."""
    _tvm.ensure()
    import tvm
    import tvm_ffi
    from tvm import s_tir, te, tirx
    from tvm.target import Target, codegen

    from tilegen.build.link import link

    B, T = tirx.Var("B", "int32"), tirx.Var("T", "int32")
    x, w, g = te.placeholder((B, T, 16), dtype, "x"), te.placeholder((16,), dtype, "w"), te.placeholder((B, T, 16), dtype, "g")
    product = te.compute(x.shape, lambda b, t, c: x[b, t, c] * w[c], "product")
    out = te.compute(x.shape, lambda b, t, c: product[b, t, c] + tirx.const(plus, dtype), "out")
    grad = te.compute(x.shape, lambda b, t, c: g[b, t, c] * w[c], "grad")

    def scheduled(symbol: str, *tensors: te.Tensor) -> tirx.PrimFunc:
        function = te.create_prim_func(list(tensors)).with_attr("global_symbol", symbol)
        schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
        for block in ("product", "out", "grad"):
            if any(tensor.op.name == block for tensor in tensors):
                b, _, c = schedule.get_loops(schedule.get_sblock(block))
                schedule.vectorize(c)
                if parallel:
                    schedule.parallel(b)
        return schedule.mod["main"].with_attr("global_symbol", symbol)

    module = tvm.IRModule(
        {
            "scale_forward": scheduled("scale_forward", x, w, product, out),
            "scale_backward": scheduled("scale_backward", w, g, grad),
        }
    )
    mcpu = codegen.llvm_get_system_cpu()
    target = Target({"kind": "llvm", "mcpu": mcpu})
    folder.mkdir(parents=True, exist_ok=True)
    link(tvm.compile(module, target=target), folder / "lib.so")

    def arg(name: str, role: str, *shape: int | str) -> Argument:
        return Argument(name, role, dtype, shape)

    args = (arg("x", "input", "B", "T", "C"), arg("w", "input", "C"), arg("product", "workspace", "B", "T", "C"))
    forward = EntryPoint("scale_forward", (*args, arg("out", "output", "B", "T", "C")))
    backward = EntryPoint(
        "scale_backward",
        (args[1], arg("grad_out", "grad_output", "B", "T", "C"), arg("grad_x", "grad_input", "B", "T", "C")),
    )
    step_args = (arg("x", "input", "B", 1, "C"), args[1], arg("state", "output", "B", 1, "C"), arg("out", "output", "B", 1, "C"))
    manifest = Manifest(
        op="scale",
        config={"order": 2},
        dtype=dtype,
        static={"C": 16},
        symbolic=("B", "T"),
        target={
            "kind": "llvm",
            "mcpu": mcpu,
            "arch": machine.arch(),
            "features": machine.required(map(str, codegen.llvm_get_cpu_features(target)), machine.arch()),
        },
        functions={"forward": forward, "backward": backward, "step": EntryPoint("scale_forward", step_args)},
        tilegen=tilegen.__version__,
        versions={"apache-tvm": tvm.__version__, "apache-tvm-ffi": tvm_ffi.__version__},
    )
    return pack.write(folder, manifest)
