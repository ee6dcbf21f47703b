"""CUDA C++ text of kernels to machine code by NVRTC, the compiler library that torch's CUDA wheels bring: no toolkit needed."""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilegen.build.nvcc import SPARING, Resources, may_spare, parse, spilled
from tilegen.errors import BuildError

# In place of what the text includes beside the half-precision headers: parts of libcu++, of which kernels use these names alone,
# and nvcuda::wmma, which they do not use.  Neither comes with torch.
_PRELUDE = """
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
#define __asm__ asm
#define __volatile__ volatile
"""


# As nvcc is called; see there.
_OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--diag-suppress=174,177")


@dataclass(frozen=True)
class Library:
    """An NVRTC library: where it lies, and its release, "13.0"."""

    path: str
    release: str


@functools.cache
def find() -> Library | None:
    """The NVRTC of this machine: of torch's wheels, else of ``$CUDA_HOME`` or the system; None when there is none."""
    for candidate in _candidates():
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        if library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0:
            return Library(candidate, f"{major.value}.{minor.value}")
    return None


def _candidates() -> Iterator[str]:
    for root in _roots():
        found = [*glob.glob(f"{root}/nvidia/*/lib/libnvrtc.so.*"), *glob.glob(f"{root}/torch/lib/libnvrtc*.so*")]
        yield from sorted(path for path in found if "builtins" not in path and "alt" not in path)
    for home in _homes():
        yield from sorted(glob.glob(f"{home}/lib64/libnvrtc.so*"))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def _roots() -> list[str]:
    """The folders that hold the packages ``nvidia`` and ``torch``."""
    roots: list[str] = []
    for name in ("nvidia", "torch"):
        spec = importlib.util.find_spec(name)
        roots += [str(Path(place).parent) for place in (spec.submodule_search_locations or ())] if spec else []
    return list(dict.fromkeys(roots))


def _homes() -> list[str]:
    return [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]


def headers() -> str | None:
    """The folder of the half-precision headers: of torch's wheels (nvidia-cuda-runtime), else of a toolkit; None when nowhere."""
    library = find()
    home = Path(library.path).parent.parent if library else Path("/nowhere")
    # Of the same release as the compiler where that is told by the place: nvidia/cu13/lib, or nvidia/cuda_nvrtc/lib for CUDA 12.
    beside = [home / "include", home.parent / "cuda_runtime" / "include"]
    wheels = [Path(path) for root in _roots() for path in sorted(glob.glob(f"{root}/nvidia/*/include"), reverse=True)]
    folders = [*beside, *wheels, *(Path(place, "include") for place in _homes())]
    return next((str(folder) for folder in folders if (folder / "cuda_bf16.h").exists()), None)


def compile(source: str, arch: str) -> tuple[bytes, list[Resources]]:
    """Compile the text of kernels to the machine code of one architecture; where they spill registers, once more without the
    optimisations that take registers, if they spill less then.

    Parameters
    ----------
    source : the device part of the generated text.
    arch : "sm_90".

    Returns
    -------
    tuple
        The cubin, and the resources of each kernel.

    Raises
    ------
    BuildError
        When there is no NVRTC or no headers, it does not know the architecture, or it fails.
    """
    library, include = find(), headers()
    if library is None or include is None:
        what, package = ("NVRTC", "nvidia-cuda-nvrtc") if library is None else ("cuda_bf16.h", "nvidia-cuda-runtime")
        raise BuildError(
            f"{what} was not found (looked into the Python packages nvidia and torch, $CUDA_HOME and /usr/local/cuda), and there "
            f"is no nvcc; pip install {package}, or install the CUDA toolkit"
        )
    options = [f"--gpu-architecture={arch}", f"--include-path={include}", *_OPTIONS]
    if int(library.release.partition(".")[0]) >= 13:
        # One thread for each kernel, as many as there are cores.  NVRTC says nothing of the resources of code that it has in a
        # cache of its own; there is one of cubins already.
        options += ["--split-compile=0", "--no-cache"]
    for part in glob.glob(f"{Path(library.path).parent}/libnvrtc-builtins.so*"):
        ctypes.CDLL(part)  # NVRTC looks for it by name, which finds what is loaded
    nvrtc, text = ctypes.CDLL(library.path), plain(source)
    made = _compiled(nvrtc, text, options, arch)
    if not may_spare(made[1]):
        return made
    return min(made, _compiled(nvrtc, text, [*options, *SPARING], arch), key=lambda each: spilled(each[1]))


def plain(source: str) -> str:
    """The text without the headers that torch does not bring."""
    block = re.compile(r"#ifdef __CUDACC_RTC__\n  #include <cuda/std/cstdint>.*?\n#else\n.*?\n#endif\n", re.DOTALL)
    return block.sub(_PRELUDE, source).replace("#include <mma.h>\n", "")


def _compiled(nvrtc: Any, source: str, options: list[str], arch: str) -> tuple[bytes, list[Resources]]:
    program = ctypes.c_void_p()

    def check(status: int) -> None:
        if status:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise BuildError(f"NVRTC failed for {arch}: {nvrtc.nvrtcGetErrorString(status).decode()}\n{log()[:2000]}")

    def sized(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, data)
        return data.raw

    def log() -> str:
        return sized("ProgramLog").rstrip(b"\0").decode(errors="replace") if program else ""

    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        check(nvrtc.nvrtcCompileProgram(program, len(options), given))
        return sized("CUBIN"), parse(log())
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
