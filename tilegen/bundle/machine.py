"""Whether a library can run on this machine: architecture and instruction sets, without running any of it."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tilegen.errors import TargetError

# LLVM's names of instruction sets that it uses by itself -> names in /proc/cpuinfo.  Sets that only intrinsics reach (aes,
# sha, ...) and scheduling hints are left out: a virtual machine may hide them, and no library needs them.
_FLAGS = {
    "x86_64": {
        "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt", "movbe": "movbe",
        "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2", "lzcnt": "abm",
        "gfni": "gfni", "avxvnni": "avx_vnni", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw",
        "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
    },
    "aarch64": {
        "neon": "asimd", "fullfp16": "asimdhp", "dotprod": "asimddp", "sve": "sve", "sve2": "sve2", "bf16": "bf16",
        "i8mm": "i8mm", "lse": "atomics",
    },
}  # fmt: skip


def required(llvm_features: Iterable[str], arch: str) -> list[str]:
    """The flags of ``/proc/cpuinfo`` that code compiled with these LLVM features needs; goes into ``target["features"]``."""
    known = _FLAGS.get(arch, {})
    return sorted({known[name] for name in llvm_features if name in known})


@functools.cache
def flags() -> frozenset[str]:
    """The instruction sets of this machine as the kernel names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    # All cores are asked only on machines that differ between cores; Linux lists what every core has.
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())


def arch() -> str:
    """The name of this machine's instruction set architecture."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def check(target: Mapping[str, Any]) -> None:
    """Raise `TargetError` unless code for `target` can run here.

    `target` holds ``arch`` and, for CPU code, ``features``, a list of flags of ``/proc/cpuinfo``.  That of GPU code has the
    processor's architecture, for which its launchers are compiled, under ``host``; the GPU is `tilegen.bundle.gpu`'s to check.
    """
    wanted = target.get("host" if target.get("kind") == "cuda" else "arch", arch())
    if wanted != arch():
        raise TargetError(f"the bundle was compiled for {wanted}, this machine is {arch()}; export it for this machine")
    missing = sorted(set(target.get("features", ())) - flags()) if flags() else []
    if missing:
        raise TargetError(
            f"the bundle was compiled for {target.get('mcpu', 'another CPU')}, this CPU lacks {', '.join(missing)}; export it "
            "with --target for a CPU that both machines can run, for instance x86-64-v3"
        )
