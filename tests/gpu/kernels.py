"""Runs every kernel of one operator once, at a small shape: what `.ci/sanitize` looks at.

    python -m tests.gpu.kernels CASE

Inputs are drawn on the host: of torch's kernels, which nobody looks at, none then writes what an operator reads.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilegen import mechanisms
from tilegen.build import gpus, nvrtc
from tilegen.bundle import shapes
from tilegen.mechanisms import Instance
from tilegen.torch.loaded import DTYPES, Entry, Loaded, loaded
from tilegen.torch.packing import tables


@dataclass(frozen=True)
class Case:
    """An operator with options and sizes."""

    op: str
    static: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"

    def instance(self) -> Instance:
        mechanism = mechanisms.get(self.op)
        return Instance(mechanism, mechanism.config(**self.options), self.static, self.dtype)


HEADS = {"D": 64, "E": 64}
CASES = {
    "fast_multipole_attention": Case("fast_multipole_attention", {"D": 64}),
    "bounded_memory_attention": Case("bounded_memory_attention", HEADS | {"N": 64}),
    "local_attention": Case("local_attention", HEADS, {"window": 64}),
    "packed": Case("local_attention", HEADS, {"window": 64, "packed": True}),
    "linear_attention": Case("linear_attention", HEADS),
    # Its tiles are too large for the shared memory of any card.
    "room": Case("local_attention", {"D": 128, "E": 128}, {"window": 256}, "float32"),
    "linear_attention-float32": Case("linear_attention", HEADS, dtype="float32"),
    "decay": Case("linear_attention", HEADS, {"decay": "token", "normalize": True}),
    "short_long_conv": Case("short_long_conv", {"C": 24, "Ks": 4}),
    "ema": Case("ema", {"C": 40, "N": 4}),
    "elementwise_attention": Case("elementwise_attention", {"C": 40}, {"order": 2}),
    "packed_linear": Case("packed_linear", {"D": 72, "E": 136}, {"bias": True}),
    "relative_bias": Case("relative_bias", {"M": 33, "P": 17}),
    "compact": Case("compact", {"C": 40}, {"return_positions": True}),
    "extract": Case("extract", {"C": 40}),
}
"""Those that take longest come first."""

B, T, H = 1, 157, 2
SIZES = {"B": B, "T": T, "H": H, "S": 3, "R": B * T, "N": B * T, "Kl": 65}
BOUNDS = [0, 70, 70, T]


def inputs(case: Case, time: int = T) -> dict[str, Tensor]:
    """Arguments of the operator by name, on the host."""
    instance = case.instance()
    generator = torch.Generator().manual_seed(0)
    sizes = SIZES | {"T": time} | instance.sizes()
    active = torch.rand(B, T, generator=generator) < 0.5
    counts = active.sum(1, dtype=torch.int32)
    known = {
        "active": active,
        "starts": counts.cumsum(0, dtype=torch.int32) - counts,
        "count": torch.tensor([50], dtype=torch.int32),
    }
    if "M" in case.static:
        known["entry"] = torch.randint(
            0, case.static["M"], (SIZES["R"], case.static["P"]), generator=generator, dtype=torch.int32
        )
    if instance.config.__dict__.get("packed"):
        bounds = torch.tensor(BOUNDS, dtype=torch.int32)
        known |= tables(instance.mechanism.lengths(instance.config), bounds, "q", torch.empty(1, T))
    for spec in instance.mechanism.arguments(instance.config):
        if spec.name not in known:
            x = torch.randn([shapes.evaluate(dim, sizes) for dim in spec.shape], generator=generator)
            positive = spec.name in ("q", "k") and case.options.get("normalize")
            x = -x.abs() if spec.name == "decay" else x.abs() + 0.1 if positive else x
            known[spec.name] = x.to(DTYPES[spec.concrete_dtype(case.dtype)])
    return known


def run(case: Case, device: torch.device) -> Loaded:
    """Run forward and backward, and the step where there is one."""
    found = loaded(case.instance(), device)
    known = {name: x.to(device) for name, x in inputs(case).items()}
    call(found.forward, known)
    for arg in found.backward.given:
        if arg.role == "grad_output":
            known[arg.name] = torch.randn(known[arg.name.removeprefix("grad_")].shape).to(device, DTYPES[arg.dtype])
    call(found.backward, known)
    if step := case.instance().step_instance():
        entry = Entry(found.bundle.function("step"), ["input"], None)
        stepped = inputs(Case(case.op, case.static, vars(step.config), case.dtype), 1)
        call(entry, {name: x.to(device) for name, x in stepped.items()})
    return found


def call(entry: Entry, known: dict[str, Tensor]) -> None:
    """Call with the tensors that `known` has by name, and add the results to them."""
    results = entry.run([known[arg.name] for arg in entry.given])
    known |= {arg.name: x for arg, x in zip(entry.results, results, strict=True)}


WRONG = """
extern "C" __global__ void tilegen_wrong(float* x, int tool) {
  __shared__ float s[256];
  int i = threadIdx.x;
  if (tool == 0) x[i + 1000000] = 1.0f;
  if (tool == 1) { s[i] = i; x[i] = s[255 - i]; }
  if (tool == 2) x[i] = x[i] + 1.0f;
}
"""
TOOLS = ("memcheck", "racecheck", "initcheck")


def run_wrong(tool: str) -> None:
    """A kernel that does what the named tool must find: writes behind a tensor, races, or reads what nobody wrote."""
    x = torch.empty(256, device="cuda")
    code, _ = nvrtc.compile(WRONG, f"sm_{gpus.of_device().capability}")
    driver, module, function = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), code) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"tilegen_wrong") == 0
    values = ctypes.c_uint64(x.data_ptr()), ctypes.c_int(TOOLS.index(tool))
    addresses = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
    assert driver.cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, None, addresses, None) == 0


if __name__ == "__main__":
    name = sys.argv[1]
    if name.startswith("wrong:"):
        run_wrong(name.partition(":")[2])
    else:
        ran = Counter(place["function"] for place in run(CASES[name], torch.device("cuda")).bundle.manifest.provenance)
        print("ran " + ", ".join(f"{function} {count}" for function, count in sorted(ran.items())))
    torch.cuda.synchronize()
