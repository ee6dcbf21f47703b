"""The tool chain on a GPU: streams, graphs, alignment, devices, and both compilers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda import scaled
from tilegen.build import compilers, cuda, gpus, library, nvcc, nvrtc
from tilegen.build.target import resolve
from tilegen.bundle import read
from tilegen.cli.instance import instance
from tilegen.errors import ArgumentError, TargetError
from tilegen.runtime import load

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=compilers.NAMES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The operator compiled for this GPU by each of the compilers."""
    out = tmp_path_factory.mktemp(request.param)
    library.compile(scaled.instance(), out, target="cuda", functions=("forward", "backward"), compiler=request.param)
    assert read(out)[0].library.endswith(".so" if request.param == "nvcc" else ".cubin"), "the other compiler was taken"
    return load(out)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda")


def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.exp() * w


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 1000), (2, 12345)])
def test_values(bundle, batch, time):
    x, w = rows(batch, time, 64), rows(64)
    torch.testing.assert_close(bundle.forward(x, w), reference(x, w), rtol=TOLERANCE, atol=TOLERANCE)


def test_kernels_wait_for_what_the_stream_does_before(bundle):
    stream, x, w = torch.cuda.Stream(), torch.full((4, 512, 64), torch.nan, device="cuda"), rows(64)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        x.fill_(0.5)
        y = bundle.forward(x, w)
    assert not stream.query(), "the call waited for the GPU"
    stream.synchronize()
    torch.testing.assert_close(y, reference(x, w), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_graph_of_the_call_replays_with_new_values(bundle):
    x, w = rows(2, 100, 64), rows(64)
    bundle.forward(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bundle.forward(x, w)
    x.copy_(rows(2, 100, 64))
    graph.replay()
    torch.testing.assert_close(y, reference(x, w), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("offset", [1, 4])
def test_views_that_start_anywhere(bundle, offset):
    """Sixteen bytes are read as they are, four are copied first."""
    x, w = rows(6401)[offset : offset + 6336].view(1, 99, 64), rows(64)
    torch.testing.assert_close(bundle.forward(x, w), reference(x, w), rtol=TOLERANCE, atol=TOLERANCE)


def test_tensors_of_the_processor_are_refused(bundle):
    with pytest.raises(ArgumentError, match="x is on cpu, must be on cuda, which the bundle was compiled for"):
        bundle.forward(torch.ones(1, 2, 64), torch.ones(64))


def test_code_for_another_generation_is_refused(tmp_path):
    other = "sm_80" if gpus.of_device().capability // 10 != 8 else "sm_90"
    library.compile(scaled.instance(), tmp_path, target=other, functions=("forward",))
    with pytest.raises(TargetError, match=f"was compiled for {other}, the GPU here is sm_"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_operator_and_its_gradients(dtype):
    x, w = rows(3, 77, 64, dtype=dtype).requires_grad_(), rows(64, dtype=dtype).requires_grad_()
    grad = rows(3, 77, 64, dtype=dtype)
    exact = reference(x.double(), w.double())
    wanted = torch.autograd.grad(exact, (x, w), grad.double())
    y = scaled.toolchain_scaled(x, w)
    rounding = torch.finfo(dtype).eps * 8
    for got, want in zip((y, *torch.autograd.grad(y, (x, w), grad)), (exact, *wanted), strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=rounding, atol=rounding * want.abs().max().item())


def test_the_operator_never_waits_for_the_gpu():
    x, w = rows(2, 64, 64).requires_grad_(), rows(64).requires_grad_()
    scaled.toolchain_scaled(x, w).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaled.toolchain_scaled(x, w).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_arguments_on_two_devices_are_refused():
    with pytest.raises(ArgumentError, match=r"w is on cpu, must be on cuda:0 as x is; move it with .to\(\)"):
        scaled.toolchain_scaled(rows(1, 2, 64), torch.ones(64))


def test_nvrtc_leaves_out_what_takes_registers_where_kernels_spill():
    """A walk with eight states each way, which spills 400 bytes otherwise."""
    target = resolve("sm_90")
    parts = library.scheduled_parts(instance("elementwise_attention", ["C=1024", "order=6"], "bfloat16"), ("backward",), target)
    _, found = nvrtc.compile(cuda.kernels(parts.parts, target)[0], "sm_90")
    assert found
    assert nvcc.spilled(found) == 0


ALONE = """
import sys
from tilegen.runtime import load
bundle = load(sys.argv[1])
import torch
q, k, v = (torch.randn(2, 777, 3, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
o = bundle.forward(q, k, v)
grads = bundle.backward(q, k, v, o)
exact = [x.double().requires_grad_() for x in (q, k, v)]
scores = torch.einsum("bihd,bjhd->bhij", exact[0], exact[1]).tril() / 8
y = torch.einsum("bhij,bjhd->bihd", scores, exact[2])
for got, want in zip((o, *grads), (y, *torch.autograd.grad(y, exact, o.double())), strict=True):
    assert (got.double() - want).norm() <= 0.01 * want.norm()
maps = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if ".so" in line}
print([name for name in (*sys.modules, *maps) if name == "tvm" or name.startswith(("tvm.", "libtvm_compiler", "libtvm_runtime"))])
"""


def test_a_bundle_exported_by_name_needs_no_compiler(tmp_path):
    """What `tilegen export --target sm_90` makes, on such a card: tvm-ffi and the CUDA runtime in the library are all there is."""
    here = f"sm_{gpus.of_device().capability}"
    given = instance("linear_attention", ["D=64", "E=64"], "bfloat16")
    library.compile(given, tmp_path, target=here, functions=("forward", "backward"), compiler="nvcc")
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


WARM = """
import sys, torch
from tests.cuda import scaled
x, w = torch.ones(1, 2, 64, device="cuda"), torch.ones(64, device="cuda")
scaled.toolchain_scaled(x, w)
print("tvm" in sys.modules)
"""


def test_a_warm_start_imports_no_compiler():
    printed = [
        subprocess.run(
            [sys.executable, "-c", WARM], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        ).stdout
        for _ in range(2)
    ]
    assert printed[1].strip() == "False"
