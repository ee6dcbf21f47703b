"""Whether CUDA code can run on this machine, asked of the driver alone: no torch, no CUDA runtime."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilegen.errors import TargetError

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NO_DEVICE = 100
_ELSEWHERE = "export the operator for the CPU (--target cpu) to run it here"


@dataclass(frozen=True)
class Driver:
    """The newest CUDA version that the driver runs, as (major, minor); the handle and the compute capability times ten of each GPU."""

    version: tuple[int, int]
    handles: tuple[int, ...]
    capabilities: tuple[int, ...]


def installed() -> bool:
    """Whether this machine has an NVIDIA driver, working or not."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return Path("/proc/driver/nvidia/version").exists()
    return True


@functools.cache
def driver() -> Driver:
    """The driver of this machine.

    Raises
    ------
    TargetError
        When there is no driver, it does not start, or it sees no GPU.
    """
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise TargetError(f"no NVIDIA driver is installed here ({error}); {_ELSEWHERE}") from None
    status = cuda.cuInit(0)
    if status:
        why = "no NVIDIA GPU is visible here" if status == _NO_DEVICE else f"the NVIDIA driver does not start (error {status})"
        raise TargetError(f"{why}; check nvidia-smi and CUDA_VISIBLE_DEVICES, or {_ELSEWHERE}")

    def asked(function: str, *arguments: int) -> int:
        value = ctypes.c_int()
        getattr(cuda, function)(ctypes.byref(value), *arguments)
        return value.value

    version = asked("cuDriverGetVersion")
    handles = tuple(asked("cuDeviceGet", i) for i in range(asked("cuDeviceGetCount")))
    capabilities = (
        10 * asked("cuDeviceGetAttribute", _MAJOR, one) + asked("cuDeviceGetAttribute", _MINOR, one) for one in handles
    )
    return Driver((version // 1000, version % 1000 // 10), handles, tuple(capabilities))


def check(target: Mapping[str, Any], built_with: str) -> None:
    """Raise `TargetError` unless some GPU of this machine can run the machine code of a bundle.

    Parameters
    ----------
    target : of the manifest; ``archs`` lists "sm_80", ....
    built_with : the CUDA version of the compiler, "13.0": a driver runs what was built with its own major version or an older one.
    """
    archs = [str(arch) for arch in target.get("archs", [target.get("arch", "")])]
    try:
        found = driver()
    except TargetError as error:
        raise TargetError(f"the bundle was compiled for {' and '.join(archs)}, and {error}") from None
    major = built_with.partition(".")[0]
    if major.isdigit() and found.version[0] < int(major):
        raise TargetError(
            f"the bundle was built with CUDA {built_with}, the driver here runs up to CUDA {found.version[0]}.{found.version[1]}; "
            f"install a newer driver, or export the bundle with CUDA {found.version[0]}"
        )
    if not any(runs(arch, capability) for arch in archs for capability in found.capabilities):
        here = ", ".join(f"sm_{capability}" for capability in found.capabilities)
        raise TargetError(
            f"the bundle was compiled for {' and '.join(archs)}, the GPU here is {here}; export it with --target {here}"
        )


def runs(arch: str, capability: int) -> bool:
    """Whether machine code for `arch` runs on a GPU: of the same major capability, and no lower a minor one."""
    wanted = arch.removeprefix("sm_")
    return wanted.isdigit() and capability // 10 == int(wanted) // 10 and capability >= int(wanted)
