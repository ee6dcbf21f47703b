"""What is installed, what this machine is, where things are kept; what is wrong with it and how to mend that.

`examine` returns data; ``tilegen doctor`` prints it.  Nothing here imports TVM into this process: a wrong pair of
versions crashes, so the compiler is tried in a child.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilegen import _tvm, settings
from tilegen.build import gpus
from tilegen.errors import BuildError, TilegenError

PACKAGES = (
    "tilegen", "apache-tvm", "apache-tvm-ffi", "torch", "numpy", "xgboost-cpu", "xgboost", "psutil", "cloudpickle", "msgspec",
    "filelock", "platformdirs", "networkx", "typer", "rich", "matplotlib",
)  # fmt: skip
"""Distributions whose versions matter to a report of a problem."""

ENOUGH_DISK = 1 << 30
"""Bytes: a cache of every operator in every dtype is a few hundred megabytes."""

TRIAL = """
from tilegen import _tvm
_tvm.ensure()
import tvm
from tvm import te
x = te.placeholder((8,), name="x")
f = te.create_prim_func([x, te.compute((8,), lambda i: x[i] + x[i], name="y")])
tvm.ir.load_json(tvm.ir.save_json(tvm.IRModule({"main": f})))
import json
from tilegen.build.target import resolve
print(json.dumps(resolve().description))
"""
"""Import, one round trip through JSON (the step at which a wrong tvm-ffi crashes), and this machine's target."""

TRIAL_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """One line of the report.  A `remedy` makes it a problem."""

    section: str
    name: str
    value: Any
    remedy: str = ""


def examine(try_compiler: bool = True) -> list[Finding]:
    """All findings, in the order in which a person would ask.

    Parameters
    ----------
    try_compiler : also import TVM in a child process, which takes seconds.
    """
    found = [*versions(), *devices(), *targets(), *folders(), *tools()]
    return [*found, *(compiler() if try_compiler else ())]


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON-able data: ``{"ok", "problems": [...], section: {name: value}}``."""
    problems = [{"what": f"{f.name}: {f.value}", "remedy": f.remedy} for f in findings if f.remedy]
    sections: dict[str, dict[str, Any]] = {}
    for f in findings:
        sections.setdefault(f.section, {})[f.name] = f.value
    return {"ok": not problems, "problems": problems, **sections}


def versions() -> Iterator[Finding]:
    """Versions of what tilegen uses; a missing one names the command that installs it."""
    section = "versions"
    yield Finding(section, "python", platform.python_version(), *_unless(sys.version_info >= (3, 11), "use Python 3.11 or later"))
    wrong = {text.split()[0]: text for text in _tvm.problems()}
    boosters = [name for name in ("xgboost-cpu", "xgboost") if _tvm.installed(name)]
    for name in PACKAGES:
        version = _tvm.installed(name)
        if name in wrong:
            yield Finding(section, name, wrong[name], _tvm.MEND)
        elif version is not None:
            yield Finding(section, name, version)
        elif not (name.startswith("xgboost") and (boosters or name == "xgboost")):
            yield Finding(section, name, "not installed", f"pip install {name}")


def devices() -> Iterator[Finding]:
    """Processors that kernels can run on."""
    section = "devices"
    yield Finding(section, "cpu", f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {_memory()}")
    for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        if variable in os.environ:
            yield Finding(section, variable, os.environ[variable])
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(section, "torch", f"cannot be imported: {error}", "pip install torch")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
        yield Finding(section, f"cuda:{index}", text)
    yield from _driver()
    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists()
        remedy = "this torch was built without CUDA or cannot reach the driver; install the torch wheel for your CUDA version"
        yield Finding(
            section, "cuda", "a driver is loaded, torch sees no device" if driver else "none", *_unless(not driver, remedy)
        )


def _driver() -> Iterator[Finding]:
    """What the NVIDIA driver says of itself; nothing where there is none."""
    from tilegen.bundle import gpu

    if gpu.installed():
        try:
            major, minor = gpu.driver().version
            yield Finding("devices", "driver", f"runs CUDA up to {major}.{minor}")
        except TilegenError as error:
            yield Finding("devices", "driver", str(error), "reinstall the NVIDIA driver, or make the GPU visible to this process")


def targets() -> Iterator[Finding]:
    """The target that is compiled for on each device, and the folder its tuning records are kept under."""
    from tilegen import build

    yield Finding("targets", "host", build.host_name())
    torch = sys.modules.get("torch")  # `devices` has said whether it can be imported
    for index in range(torch.cuda.device_count() if torch else 0):
        try:
            card = gpus.of_device(index)
        except TilegenError as error:
            yield Finding("targets", f"cuda:{index}", f"none: {error}")
        else:
            yield Finding("targets", f"cuda:{index}", f"{card.arch}, records in {card.name}")


def folders() -> Iterator[Finding]:
    """Cache and logs: where, how much, and whether they can be written."""
    section = "folders"
    for name, path, pattern, what in (
        ("cache", settings.cache_dir(), "**/manifest.json", "libraries"),
        ("log", settings.log_dir(), "**/*.jsonl", "logs"),
    ):
        count = sum(1 for _ in path.glob(pattern)) if path.is_dir() else 0
        yield Finding(section, name, f"{path} ({count} {what})", *_unless(_writable(path), _move(name)))
    shipped = settings.shipped_log_dir()
    yield Finding(section, "shipped logs", f"{shipped} ({sum(1 for _ in shipped.glob('*/*.jsonl'))} logs)")
    free = shutil.disk_usage(_existing(settings.cache_dir())).free
    yield Finding(
        section, "free disk", f"{free / 2**30:.1f} GiB", *_unless(free > ENOUGH_DISK, f"free some space, or {_move('cache')}")
    )


def tools() -> Iterator[Finding]:
    """Programs that turn generated code into libraries."""
    from tilegen.build import link

    section = "tools"
    try:
        command = link.driver()
        yield Finding(section, "linker", f"{' '.join(command)} ({_said(command)})")
    except BuildError as error:
        yield Finding(section, "linker", "not found", str(error))
    yield from _cuda_compilers()


def _cuda_compilers() -> Iterator[Finding]:
    """nvcc, which writes libraries; NVRTC, which compiles on a machine without it."""
    from tilegen.build import nvcc, nvrtc
    from tilegen.bundle import gpu

    section, path = "tools", None
    try:
        path = nvcc.find()
    except BuildError as error:
        yield Finding(section, "nvcc", "not found", str(error))
    else:
        yield Finding(
            section, "nvcc", f"{path} ({nvcc.release(path)})" if path else "not found, needed to export CUDA libraries only"
        )
    library, include = nvrtc.find(), nvrtc.headers()
    missing = [what for what, found in (("its library", library), ("cuda_bf16.h", include)) if not found]
    needed = path is None and gpu.installed()
    yield Finding(
        section,
        "NVRTC",
        f"{library.path} ({library.release}), headers in {include}"
        if library and include
        else f"not found: {' and '.join(missing)}",
        *_unless(not (missing and needed), "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime, or install the CUDA toolkit"),
    )


def _said(command: list[str]) -> str:
    """The line of ``--version`` that has the version."""
    try:
        child = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = child.stdout.splitlines() or [""]
    return next((line for line in lines if "release" in line), lines[0]).strip()


def compiler() -> Iterator[Finding]:
    """TVM, tried in a child process."""
    start = time.monotonic()
    try:
        child = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        yield Finding("compiler", "tvm", f"no answer within {TRIAL_SECONDS} s", f"reinstall it: {_tvm.MEND}")
        return
    if child.returncode == 0:
        yield Finding("compiler", "tvm", f"works, {time.monotonic() - start:.1f} s to load")
        yield Finding("compiler", "target cpu", json.loads(child.stdout.splitlines()[-1]))
        return
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    yield Finding("compiler", "tvm", f"fails with status {child.returncode}: {last}", _tvm.MEND)


def cpu_name() -> str:
    """The name that the processor gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _unless(fine: bool, remedy: str) -> tuple[str, ...]:
    """The remedy as the last argument of a finding, when it is needed."""
    return () if fine else (remedy,)


def _move(folder: str) -> str:
    return f"set TILEGEN_{folder.upper()}_DIR to a folder that can be written"


def _existing(path: Path) -> Path:
    """`path` or its nearest parent that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _writable(path: Path) -> bool:
    nearest = _existing(path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
