"""Loading CUDA bundles: readable errors where nothing can run, and starting kernels through a driver that writes down what it is told."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cuda import scaled
from tilegen.bundle import pack
from tilegen.bundle.manifest import LAUNCHES, LIBRARY, Manifest

LOAD = """
from tilegen.errors import TilegenError
from tilegen.runtime import load
try:
    print(load({path!r}))
except TilegenError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"init": 100},
            "and no NVIDIA GPU is visible here; check nvidia-smi and CUDA_VISIBLE_DEVICES, or export the operator for the CPU",
        ),
        ({"init": 999}, "and the NVIDIA driver does not start (error 999); check nvidia-smi"),
        ({"version": 12040}, "the driver here runs up to CUDA 12.4; install a newer driver, or export the bundle with CUDA 12"),
        ({"capability": 75}, "was compiled for sm_80 and sm_90, the GPU here is sm_75; export it with --target sm_75"),
        ({"capability": 120}, "was compiled for sm_80 and sm_90, the GPU here is sm_120; export it with --target sm_120"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_why(bundle, on_gpu, said, message):
    printed, _ = on_gpu(LOAD.format(path=str(bundle)), **said)
    assert printed.startswith("TargetError the bundle was")
    assert message in printed


def test_a_machine_without_a_driver_is_told_so(bundle, on_gpu, driver, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("")
    code = f"import os\nfrom tilegen.bundle import gpu\ngpu.DRIVER = {str(tmp_path / 'libcuda.so.1')!r}\n" + LOAD.format(
        path=str(bundle)
    )
    printed, _ = on_gpu(code)
    assert "TargetError the bundle was compiled for sm_80 and sm_90, and no NVIDIA driver is installed here" in printed
    assert "export the operator for the CPU (--target cpu) to run it here" in printed


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_a_gpu_of_the_same_generation_loads_it(bundle, on_gpu, capability):
    printed, _ = on_gpu(LOAD.format(path=str(bundle)), capability=capability)
    assert printed.startswith(
        "Bundle toolchain_scaled float32 [C=64] for cuda sm_80+sm_90 x86_64\n  forward(x: float32[B, T, 64]"
    )


def test_tensors_of_the_processor_are_refused(bundle, on_gpu):
    code = f"""
import numpy
from tilegen.errors import ArgumentError
from tilegen.runtime import load
x = numpy.zeros((1, 2, 64), numpy.float32)
try:
    load({str(bundle)!r}).forward(x, x[0, 0].copy())
except ArgumentError as error:
    print(error)
"""
    printed, _ = on_gpu(code)
    assert printed.strip() == "x is on cpu, must be on cuda, which the bundle was compiled for"


@pytest.fixture
def cubins(bundle, tmp_path):
    """The same operator as machine code with a table of launches; the fake driver does not look into the code."""
    from tilegen.build import cuda, library
    from tilegen.build.target import resolve

    made = library.scheduled_parts(scaled.instance(), ("forward", "backward"), resolve("sm_80"))
    _, table = cuda.kernels(made.parts, resolve("sm_80"))
    table["tilegen_backward"][0]["shared"] = 65536
    folder = tmp_path / "cubins"
    shutil.copytree(bundle, folder)
    (folder / LIBRARY).unlink()
    for arch in ("sm_80", "sm_90"):
        (folder / f"{arch}.cubin").write_bytes(f"code{arch[3:]}\0".encode())
    (folder / LAUNCHES).write_text(json.dumps(table))
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    pack.write(folder, Manifest(**vars(manifest) | {"library": "sm_80.cubin"}))
    return folder


# Tensors of a GPU cannot be made here; these have what a launch looks at.
CALL = """
import types
import torch
from tilegen.errors import TilegenError
from tilegen.runtime import load

class OnGpu:
    is_contiguous = staticmethod(lambda: True)
    def __init__(self, address, *shape, dtype=torch.float32, device=0):
        self.shape, self.dtype, self.device = torch.Size(shape), dtype, f"cuda:{{device}}"
        self.data_ptr, self.get_device = lambda: address, lambda: device

torch._C._cuda_getCurrentRawStream = lambda device: 0x7E57
bundle = load({path!r})
x, w, y = OnGpu(0xA0000000000, 3, 100, 64), OnGpu(0xB0000000000, 64), OnGpu(0xC0000000000, 3, 100, 64)
try:
    {call}
except TilegenError as error:
    print(type(error).__name__, error)
"""


def test_kernels_start_on_the_current_stream_with_the_sizes_of_the_call(cubins, on_gpu):
    code = CALL.format(path=str(cubins), call="bundle.forward.call([x, w, y]); bundle.forward.call([x, w, y])")
    printed, log = on_gpu(code, capability=86)
    assert printed == ""
    # The code of the highest architecture that the card runs, loaded once, in the card's own context.
    assert log[0] == "load code80 depth 1" and log[1] == log[2] and len(log) == 3
    (kernel,) = json.loads((cubins / LAUNCHES).read_text())["tilegen_forward"]
    addresses = {"x": "a0000000000", "w": "b0000000000", "y": "c0000000000"}
    first, second = (addresses[argument["tensor"]] for argument in kernel["arguments"][:2])
    assert log[1].startswith(f"launch tilegen_forward_kernel grid {-(-300 * 16 // 256)},1,1 block 256,1,1 shared 0 stream 7e57 ")
    assert f"pointers {first} {second}" in log[1] and log[1].endswith("depth 1")


def test_kernels_of_a_function_start_in_order_and_ask_for_their_shared_memory(cubins, on_gpu):
    order = [arg.name for arg in Manifest.from_json((cubins / "manifest.json").read_text()).functions["backward"].args]
    made = {"x": "x", "w": "w", "grad_y": "y", "grad_x": "OnGpu(0xD0000000000, 3, 100, 64)", "grad_w": "OnGpu(0xE0000000000, 64)"}
    made["workspace_reduce0_parts"] = "OnGpu(0xF0000000000, 64, 1, 64)"
    code = CALL.format(path=str(cubins), call=f"bundle.backward.call([{', '.join(made[name] for name in order)}])")
    printed, log = on_gpu(code, sizes=0)
    assert printed == ""
    assert [line.split()[:2] for line in log] == [
        ["load", "code90"],
        ["attribute", "tilegen_backward_kernel"],
        ["launch", "tilegen_backward_kernel"],
        ["launch", "tilegen_backward_kernel_1"],
        ["launch", "tilegen_backward_kernel_2"],
    ]
    assert log[1].endswith(" 8 65536") and "shared 65536" in log[2] and "shared 0" in log[3] and "shared 0" in log[4]


@pytest.mark.parametrize(
    ("call", "said", "message"),
    [
        (
            "bundle.forward.call([x, w, y])",
            {"launch": 700},
            "TargetError forward could not start on the GPU: CUDA launch: a fake error (700)",
        ),
        ("bundle.forward.call([x, w])", {}, "ArgumentError forward refused its arguments: got 2 arguments, must get 3: x, w, y"),
        ("bundle.forward.call([x, w, w])", {}, "ArgumentError forward refused its arguments: y"),
        (
            "bundle.forward.call([x, w, OnGpu(0, 3, 100, 64, device=1)])",
            {},
            "ArgumentError forward refused its arguments: y is float32 on cuda:1, must be contiguous float32 on cuda:0",
        ),
    ],
)
def test_what_cannot_start_is_said(cubins, on_gpu, call, said, message):
    printed, _ = on_gpu(CALL.format(path=str(cubins), call=call), **said)
    assert printed.startswith(message)
