"""CUDA as a target without a GPU: targets, generated text, nvcc, what the manifest says."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import tvm_ffi

from tests.cuda import scaled
from tilegen.build import compilers, cuda, gpus, nvcc, nvrtc
from tilegen.build.target import resolve
from tilegen.bundle import read
from tilegen.errors import BuildError, TargetError


@pytest.mark.parametrize(("name", "capability", "shared"), [("sm_75", 75, 65536), ("sm_80", 80, 166912), ("sm_90", 90, 232448)])
def test_an_architecture_is_a_target_without_its_card(name, capability, shared):
    target = resolve(name)
    assert (target.kind, target.device) == ("cuda", name)
    assert (target.machine.capability, target.machine.shared_bytes) == (capability, shared)
    assert target.description == {"kind": "cuda", "arch": name, "archs": [name], "host": target.description["host"]}
    assert int(target.tvm.attrs["max_shared_memory_per_block"]) == shared


def test_a_target_of_several_architectures_is_the_least_of_them():
    target = resolve("sm_120, sm_80")
    assert target.description["archs"] == ["sm_80", "sm_120"]
    assert target.machine.capability == 80
    assert target.machine.shared_bytes == gpus.NAMED["sm_120"].shared_bytes < gpus.NAMED["sm_80"].shared_bytes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sm_99", "target is 'sm_99', must be 'cuda' for this machine's GPU or among sm_75, sm_80"),
        ("sm_90,", "target is '', must be"),
        ("cuda:x", "target is 'cuda:x', must be 'cuda' or 'cuda:' and the number of a device"),
        ("cuda:64", "target 'cuda' needs CUDA device 64, and .*; name an architecture such as sm_90 to compile without one"),
    ],
)
def test_an_unknown_gpu_is_said(name, message):
    with pytest.raises(TargetError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100"),
        ("NVIDIA A100-SXM4-40GB", "nvidia-a100-sxm4"),
        ("Tesla T4", "nvidia-tesla-t4"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
    ],
)
def test_records_of_a_card_do_not_depend_on_the_size_of_its_memory(name, folder):
    assert gpus.folder_name(name) == folder


def test_a_dtype_that_the_gpu_lacks_is_refused():
    with pytest.raises(
        TargetError, match="target is sm_75, which has no bfloat16; use float16 or float32, or a target from sm_80 on"
    ):
        cuda.source(scaled.instance("bfloat16"), "sm_75")
    assert "half" in cuda.source(scaled.instance("float16"), "sm_75", ("forward",))


def test_the_text_has_the_kernels_and_their_launchers():
    text = cuda.source(scaled.instance(), "sm_90", ("forward", "backward"))
    kernels = re.findall(r"__global__ void __launch_bounds__\(\d+\) (\w+)\([^;{]*\) \{", text)
    # The sum over all positions has two stages.
    assert kernels == ["tilegen_forward_kernel", *(f"tilegen_backward_kernel{number}" for number in ("", "_1", "_2"))]
    assert "int32_t __tvm_ffi_tilegen_forward(" in text and "int32_t __tvm_ffi_tilegen_backward(" in text
    assert "__expf" not in text  # the library's accurate function


def test_the_text_is_the_same_every_time():
    assert cuda.source(scaled.instance(), "sm_80") == cuda.source(scaled.instance(), "sm_80")


def test_indices_are_divided_as_the_machine_does():
    """Blocks and threads count from zero and sizes are positive, so rounding toward zero is rounding down: no corrections."""
    text, _ = cuda.kernels(cuda_parts("forward"), resolve("sm_90"))
    assert " / T)" in text and " % T)" in text
    assert "T >= 0" not in text and "rmod" not in text


def cuda_parts(*functions: str):
    from tilegen.build import library

    return library.scheduled_parts(scaled.instance(), functions, resolve("sm_90")).parts


def test_the_manifest_says_what_was_compiled(bundle):
    manifest, files = read(bundle)
    assert manifest.target["archs"] == ["sm_80", "sm_90"] and list(files) == ["lib.so"]
    assert manifest.versions["cuda"] == nvcc.release(nvcc.find())
    kernels = {(made["function"], made["kernel"]): made for made in manifest.provenance}
    assert {rule["rule"] for rule in kernels.values()} == {"cuda.map", "cuda.reduce"}
    for (function, _), made in kernels.items():
        assert [one["arch"] for one in made["compiled"]] == ["sm_80", "sm_90"] * (2 if made["rule"] == "cuda.reduce" else 1)
        for one in made["compiled"]:
            assert one["kernel"].startswith(f"tilegen_{function}_kernel")
            assert 0 < one["registers"] <= 255
            assert one["stack"] == one["spill_stores"] == one["spill_loads"] == 0
    assert kernels["backward", "reduce0"]["compiled"][0]["shared"] > 0


def test_the_library_exports_nothing_but_its_functions(bundle):
    """Names of kernels are the same in all libraries; one process loads many."""
    listed = subprocess.run(["nm", "-D", "--defined-only", bundle / "lib.so"], capture_output=True, text=True, check=True).stdout
    strong = {line.split()[-1] for line in listed.splitlines() if line.split()[-2] == "T"}
    assert strong == {"__tvm_ffi_tilegen_forward", "__tvm_ffi_tilegen_backward"}


def test_launchers_check_their_arguments_before_they_touch_a_gpu(bundle):
    import numpy

    forward = tvm_ffi.load_module(str(bundle / "lib.so")).get_function("tilegen_forward")
    x = numpy.zeros((1, 2, 64), numpy.float32)
    with pytest.raises(Exception, match=r"(?s)device_type on argument #0.*expected cuda"):
        forward(x, x[0, 0].copy(), x.copy())
    with pytest.raises(Exception, match="Expected 3 arguments"):
        forward(x)


def test_resources_are_read_from_what_ptxas_prints():
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'walk_kernel_1' for 'sm_80'
ptxas info    : Function properties for walk_kernel_1
    248 bytes stack frame, 300 bytes spill stores, 412 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 248 bytes cumulative stack size, 49152 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'map_kernel' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 15 registers, used 0 barriers
"""
    assert nvcc.parse(said) == [
        nvcc.Resources("walk_kernel_1", "sm_80", 255, 248, 300, 412, 49152),
        nvcc.Resources("map_kernel", "sm_90", 15, 0, 0, 0, 0),
    ]


def test_code_that_nvrtc_has_in_its_cache_has_no_resources():
    assert nvcc.parse("") == []


def test_what_nvcc_refuses_is_shown_with_its_words(tmp_path):
    with pytest.raises(BuildError, match=r"nvcc failed with exit status \d+; command: .*\n.*kernels.cu\(1\): error"):
        nvcc.compile("this is no C++;", tmp_path / "lib.so", ["sm_90"])


def test_a_wrong_path_of_nvcc_is_said(monkeypatch):
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    with pytest.raises(BuildError, match="CUDACXX is '/nowhere/nvcc', which is not a program; unset it"):
        nvcc.find()


def test_nvcc_is_found_where_cuda_home_says(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvcc"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc.find() == str(program)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert nvcc.release(str(program)) == "12.4"


def test_the_user_chooses_the_compiler(monkeypatch):
    monkeypatch.setenv("TILEGEN_CUDA_COMPILER", "NVRTC")
    assert compilers.choose() == "nvrtc"
    monkeypatch.setenv("TILEGEN_CUDA_COMPILER", "clang")
    with pytest.raises(BuildError, match="TILEGEN_CUDA_COMPILER is 'clang', must be nvcc or nvrtc, or unset"):
        compilers.choose()
    monkeypatch.delenv("TILEGEN_CUDA_COMPILER")
    assert compilers.choose("nvcc") == "nvcc"
    assert compilers.choose("nvrtc") == ("nvrtc" if nvrtc.find() and nvrtc.headers() else "nvcc")


def test_kernels_for_nvrtc_include_no_header_that_torch_does_not_bring():
    text, _ = cuda.kernels(cuda_parts("forward"), resolve("sm_90"))
    assert set(re.findall(r"#include <(\S+)>", nvrtc.plain(text))) <= {"cuda_fp16.h", "cuda_bf16.h"}
    assert "typedef long long int64_t;" in nvrtc.plain(text)


def test_the_table_of_launches_is_what_the_launcher_computes():
    _, table = cuda.kernels(cuda_parts("forward", "backward"), resolve("sm_90"))
    (launch,) = table["tilegen_forward"]
    tensors = [argument["tensor"] for argument in launch["arguments"] if "tensor" in argument]
    sizes = [argument["size"] for argument in launch["arguments"] if "size" in argument]
    assert launch["kernel"] == "tilegen_forward_kernel" and sorted(tensors) == ["w", "x", "y"] and sizes == ["B", "T"]
    assert launch["block"] == [256, 1, 1] and launch["grid"][1:] == [1, 1]
    from tilegen.bundle import shapes

    for batch, time in ((1, 1), (3, 1000)):
        blocks = -(-batch * time * 16 // 256)
        assert shapes.evaluate(launch["grid"][0], {"B": batch, "T": time}) == blocks
    assert len(table["tilegen_backward"]) == 3
    json.dumps(table)


def test_equal_operators_give_equal_libraries(bundle, tmp_path):
    from tilegen.build import library

    library.compile(scaled.instance(), tmp_path, target="sm_80,sm_90", functions=("forward", "backward"), compiler="nvcc")
    assert read(tmp_path)[0].files == read(bundle)[0].files


def test_what_may_be_negative_is_divided_with_care():
    from tvm import tirx

    from tilegen.build.divisions import truncated

    n, i = tirx.Var("n", "int32"), tirx.Var("i", "int32")
    out = tirx.decl_buffer((n,), "int32", name="out")

    def body(value):
        loop = tirx.For(i, 0, n, tirx.ForKind.SERIAL, tirx.BufferStore(out, value, [i]))
        return truncated(tirx.PrimFunc([out], loop)).body.body.value

    assert type(body(tirx.floordiv(i + 1, n))).__name__ == "Div" and type(body(tirx.floormod(i, n))).__name__ == "Mod"
    assert (
        type(body(tirx.floordiv(i - 1, n))).__name__ == "FloorDiv" and type(body(tirx.floormod(i - n, n))).__name__ == "FloorMod"
    )
