"""From a compiled TVM module to a shared library that tvm-ffi loads.

The library is linked from TVM's object file alone: no start-up code of ours, equal modules give equal files.  What it calls
is found at load time: tvm-ffi's error functions, libm, and TVM's runtime library when a loop is parallel.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilegen.errors import BuildError

_OPTIONS = ("-shared", "-fPIC", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,now")
_TIMEOUT = 300  # seconds; linking takes a tenth of one


def link(module: Any, out: Path) -> None:
    """Write `module` as the shared library `out`.

    Parameters
    ----------
    module : the result of ``tvm.compile``, or the module in it.
    out : path of the library; its folder must exist.

    Raises
    ------
    BuildError
        When no compiler driver is installed, or linking fails.
    """
    command = driver()

    def fcompile(name: str, objects: Sequence[str], **_: Any) -> None:
        _run([*command, *_OPTIONS, "-o", name, *objects, "-lm"])

    # A module of one LLVM part is one object; with imported parts (device code) TVM adds an object that holds them.
    module.export_library(str(out), fcompile=fcompile)


def driver() -> list[str]:
    """The command that links: ``$CC``, the first of cc, gcc, clang that is installed, or the ``ziglang`` package.

    Raises
    ------
    BuildError
        When there is none.
    """
    if chosen := os.environ.get("CC"):
        command = shlex.split(chosen)
        if shutil.which(command[0]):
            return command
        raise BuildError(f"CC is {chosen!r}, which is not a program; unset it or set it to a C compiler")
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise BuildError(
        "no C compiler was found to link the library (looked for $CC, cc, gcc, clang and the Python package ziglang); install "
        "one: `apt install gcc`, or `pip install ziglang` where you may not install system packages"
    )


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"linking failed: {error}; command: {shlex.join(command)}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise BuildError(f"linking failed with exit status {done.returncode}; command: {shlex.join(command)}\n{said}")
