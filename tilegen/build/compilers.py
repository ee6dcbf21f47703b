"""Which CUDA compiler is used.

nvcc makes a library with compiled launchers that needs nothing but tvm-ffi and a driver: what is exported.  NVRTC compiles kernels
alone, in a twentieth of the time and without a toolkit or host compiler: what is compiled for this machine on first use.  Either
serves where the other is missing; ``TILEGEN_CUDA_COMPILER`` decides otherwise.
"""

from __future__ import annotations

from tilegen import settings
from tilegen.build import nvcc, nvrtc
from tilegen.errors import BuildError

NAMES = ("nvcc", "nvrtc")


def choose(preferred: str = "nvcc") -> str:
    """ "nvcc" or "nvrtc": the user's choice, else `preferred` where it is installed, else the other one.

    Raises
    ------
    BuildError
        When ``TILEGEN_CUDA_COMPILER`` has another value, or none is installed.
    """
    wanted = settings.cuda_compiler()
    if wanted and wanted not in NAMES:
        raise BuildError(f"TILEGEN_CUDA_COMPILER is {wanted!r}, must be {' or '.join(NAMES)}, or unset")
    if wanted:
        return wanted
    installed = {"nvcc": nvcc.find() is not None, "nvrtc": nvrtc.find() is not None and nvrtc.headers() is not None}
    for name in (preferred, *NAMES):
        if installed[name]:
            return name
    raise BuildError(
        "no CUDA compiler was found, neither NVRTC nor nvcc (looked into the Python packages nvidia and torch, at $CUDACXX, PATH, "
        "$CUDA_HOME and /usr/local/cuda); pip install nvidia-cuda-nvrtc nvidia-cuda-runtime, or install the CUDA toolkit"
    )


def release(name: str) -> str:
    """The release of the compiler of that name, "13.0"."""
    if name == "nvcc":
        return nvcc.release(nvcc.find() or "")
    found = nvrtc.find()
    return found.release if found else ""
