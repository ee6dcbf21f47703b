"""CUDA C++ text to a shared library by nvcc, and what ptxas says about each kernel.

The library holds machine code of every architecture asked for and the CUDA runtime itself; it calls tvm-ffi and the driver.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilegen.errors import BuildError

_TEXT = "kernels.cu"
_TIMEOUT = 1800  # seconds; large kernels take minutes to optimise
_DEVICE = (
    "-std=c++17",
    "--ptxas-options=-v",
    # Unused functions, and statements without effect, are normal in generated text.
    "-diag-suppress=174,177",
)
# Optimisations that take registers are left out.
SPARING = ("--ptxas-options=--register-usage-level=0",)
_LITTLE = 4096  # bytes of spills; kernels that spill more do so in any case, and take long to compile
_OPTIONS = (
    *_DEVICE,
    "-O3",
    "-shared",
    # Nothing but the entry points is seen from outside: two libraries in one process have functions of the same names.
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden",
    "-Xlinker=-z,noexecstack,--build-id=none,--strip-all",
    "-cudart=static",
)
# Contraction of a*b+c into one instruction stays on, as in torch's own kernels; --use_fast_math, which flushes subnormal
# numbers and approximates division and square roots, stays off.


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel on one architecture: registers of a thread, bytes of its stack and of spills, static shared
    memory of a block in bytes."""

    kernel: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    def as_dict(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return asdict(self)


def find() -> str | None:
    """The path of nvcc: ``$CUDACXX``, ``PATH``, ``$CUDA_HOME``, ``$CUDA_PATH``, the pip wheel nvidia-cuda-nvcc, or
    ``/usr/local/cuda``; None when it is nowhere.

    Raises
    ------
    BuildError
        When ``$CUDACXX`` is set to what is no program.
    """
    if chosen := os.environ.get("CUDACXX"):
        if path := shutil.which(chosen):
            return path
        raise BuildError(f"CUDACXX is {chosen!r}, which is not a program; unset it or set it to the path of nvcc")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = ["nvcc", *(f"{home}/bin/nvcc" for home in homes), *_wheels(), "/usr/local/cuda/bin/nvcc"]
    return next((path for candidate in candidates if (path := shutil.which(candidate))), None)


def required() -> str:
    """The path of nvcc; raises BuildError when it is nowhere."""
    path = find()
    if path is None:
        raise BuildError(
            "no nvcc was found (looked at $CUDACXX, PATH, $CUDA_HOME, the Python package nvidia-cuda-nvcc and /usr/local/cuda); "
            "install the CUDA toolkit, or its compiler alone: pip install nvidia-cuda-nvcc nvidia-cuda-cccl"
        )
    return path


def _wheels() -> list[str]:
    """Where pip installs nvcc: ``nvidia/cu13/bin/nvcc`` beside the other wheels of that name."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [path for root in roots for path in sorted(glob.glob(f"{root}/*/bin/nvcc"), reverse=True)]


def compile(source: str, out: Path, archs: Sequence[str]) -> list[Resources]:
    """Compile one translation unit into the shared library `out`.

    Parameters
    ----------
    source : CUDA C++ text with kernels and launchers; see `tilegen.build.cuda.generate`.
    archs : "sm_80", "sm_90", ...: machine code for each of them.

    Raises
    ------
    BuildError
        When there is no nvcc, it does not know an architecture, or it fails.
    """
    path = required()
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (arch.removeprefix("sm_") for arch in archs)]
    with tempfile.TemporaryDirectory(prefix="tilegen-nvcc-") as folder:
        (Path(folder) / _TEXT).write_text(source)
        # One thread for each kernel, and one for each architecture.
        threads = [f"--threads={len(archs)}"] if len(archs) > 1 else []
        split = ["--split-compile=0"] if int(release(path).partition(".")[0] or 0) >= 13 else []
        # The wheels keep libraries in a folder where nvcc does not look.
        libraries = Path(path).parent.parent / "lib"
        places = [f"-L{libraries}"] if (libraries / "libcudart_static.a").exists() else []
        # Names without folders, which nvcc writes into the code: equal texts give equal libraries.
        command = [path, *_OPTIONS, *threads, *split, *codes, *places, f"-I{_include()}", _TEXT]
        made, found = _without_spills(command, folder, out.name)
        shutil.move(made, out)
    return found


def cubin(kernels: str, arch: str) -> tuple[bytes, list[Resources]]:
    """The machine code of kernels on one architecture and their resources, from their text without launchers.

    Raises
    ------
    BuildError
        As `compile`.
    """
    with tempfile.TemporaryDirectory(prefix="tilegen-nvcc-") as folder:
        (Path(folder) / _TEXT).write_text(kernels)
        made, found = _without_spills([required(), *_DEVICE, f"-arch={arch}", "-cubin", _TEXT], folder, "kernels.cubin")
        return made.read_bytes(), found


def _without_spills(command: list[str], folder: str, name: str) -> tuple[Path, list[Resources]]:
    """What a command compiles, called `name`; where kernels spill registers, what it compiles when asked to use few, if they do not."""
    found = parse(_run([*command, "-o", name], folder))
    if may_spare(found):
        (sparing := Path(folder) / "sparing").mkdir()
        shutil.copy(Path(folder) / _TEXT, sparing)
        again = parse(_run([*command, *SPARING, "-o", name], str(sparing)))
        if spilled(again) < spilled(found):
            return sparing / name, again
    return Path(folder) / name, found


def spilled(found: Sequence[Resources]) -> int:
    """Bytes that kernels store because they have too few registers."""
    return sum(one.spill_stores for one in found)


def may_spare(found: Sequence[Resources]) -> bool:
    """Whether kernels spill so little that `SPARING` may help."""
    return 0 < spilled(found) <= _LITTLE


def examine(kernels: str, arch: str) -> list[Resources]:
    """The resources of kernels on one architecture, from their text without launchers; keeps no machine code.

    Raises
    ------
    BuildError
        As `compile`.
    """
    return cubin(kernels, arch)[1]


def parse(said: str) -> list[Resources]:
    """The resources of every kernel in what ``ptxas -v`` printed; NVRTC prints nothing for code that it has in its own cache."""
    found = []
    header = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
    starts = [*header.finditer(said)]
    ends = [*(m.start() for m in starts), len(said)][1:]
    for start, end in zip(starts, ends, strict=True):
        part = said[start.end() : end]

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        found.append(
            Resources(
                kernel=start[1],
                arch=start[2],
                registers=number(r"Used (\d+) registers"),
                stack=number(r"(\d+) bytes stack frame"),
                spill_stores=number(r"(\d+) bytes spill stores"),
                spill_loads=number(r"(\d+) bytes spill loads"),
                shared=number(r"(\d+) bytes smem"),
            )
        )
    return found


def release(path: str) -> str:
    """The release of the nvcc at `path`, "13.0"; empty when it does not say."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else ""


def _include() -> str:
    import tvm_ffi

    return str(tvm_ffi.libinfo.find_include_path())


def _run(command: Sequence[str], folder: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"nvcc failed: {error}; command: {shlex.join(command)}") from error
    said = done.stdout + done.stderr
    if done.returncode:
        lines = [line for line in said.splitlines() if not line.startswith("ptxas info")]
        first = next((i for i, line in enumerate(lines) if "error" in line or "cannot find" in line), 0)
        text = "\n".join(lines[first : first + 20])
        raise BuildError(f"nvcc failed with exit status {done.returncode}; command: {shlex.join(command)}\n{text}")
    return said
