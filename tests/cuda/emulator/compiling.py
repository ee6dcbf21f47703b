"""From the C++ of a function to a shared library that runs it, cached by content."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tvm_ffi import libinfo

from tests.cuda.emulator import rewrite

RUNTIME = "libemulator.so"
_HERE = Path(__file__).parent
_OPTIONS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-w")
# Text compiled with the sanitizer's hooks calls back at every access to memory.  Compiling takes longer than running: no
# optimisation.  CUDA text reads vectors from arrays of scalars: no strict aliasing.  Registers that nobody has written to hold
# huge numbers.  No contraction: results do not depend on the machine's instructions.
_TEXT_OPTIONS = (*_OPTIONS, "-O0", "-fsanitize=thread", "-fno-strict-aliasing", "-ffp-contract=off")
_UNWRITTEN = "-ftrivial-auto-var-init=pattern"  # from GCC 12 on
_RUNTIME_OPTIONS = ("-std=c++17", "-fPIC", "-shared", "-O2", "-Wall", "-Wextra", "-Wl,-Bsymbolic")
_PRELUDE = """\
#include "emulator/cuda.h"
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <tvm/ffi/function.h>
"""


def library(source: str) -> Path:
    """The shared library of the CUDA text `source`, compiled unless it has been before."""
    folder = _folder()
    runtime = _runtime(folder)
    text = rewrite.cpp(source)
    out = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not out.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            cpp, made = Path(work) / "text.cpp", Path(work) / "text.so"
            cpp.write_text(text)
            prelude = folder / "prelude.h"
            _run(
                [*_compiler(), *_text_options(), *_includes(), "-include", str(prelude), "-c", str(cpp), "-o", f"{made}.o"],
                source,
            )
            _run([*_compiler(), "-shared", f"{made}.o", "-o", str(made), *_libraries(runtime)], source)
            os.replace(made, out)
    return out


def _folder() -> Path:
    """Where compiled files lie: one folder for each state of the emulator and of the compiler, below `TILEGEN_CACHE_DIR`."""
    root = Path(os.environ.get("TILEGEN_CACHE_DIR") or Path(tempfile.gettempdir()) / f"tilegen-{os.getuid()}")
    folder = root / f"emulator-{_state()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _state() -> str:
    digest = hashlib.sha256(
        repr((_text_options(), _RUNTIME_OPTIONS, _PRELUDE, _compiler(), libinfo.find_include_path())).encode()
    )
    digest.update(subprocess.run([*_compiler(), "--version"], capture_output=True, check=True).stdout)
    for path in sorted([*_HERE.rglob("*.h"), *_HERE.rglob("*.cpp")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _runtime(folder: Path) -> Path:
    """The library of the emulator itself, and the headers that every text includes, compiled once.

    All texts of a process share one library: it keeps a stack for every thread of a block.
    """
    runtime = folder / RUNTIME
    _once(runtime, [*_RUNTIME_OPTIONS, *map(str, sorted((_HERE / "runtime").glob("*.cpp")))])
    prelude = folder / "prelude.h"
    if not prelude.exists():
        _written(prelude, _PRELUDE)
    _once(folder / "prelude.h.gch", [*_text_options(), "-x", "c++-header", str(prelude)])
    return runtime


def _once(out: Path, arguments: Sequence[str]) -> None:
    if out.exists():
        return
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        made = Path(work) / out.name
        _run([*_compiler(), *_includes(), *arguments, "-o", str(made)], "")
        with contextlib.suppress(FileExistsError):  # another process was faster, and may have loaded its file already
            os.link(made, out)


def _written(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


@functools.cache
def _compiler() -> tuple[str, ...]:
    """``$CXX``, or g++: the emulator needs its sanitizer hooks and precompiled headers."""
    command = tuple(shlex.split(os.environ.get("CXX", "g++")))
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"the emulator of CUDA needs the C++ compiler {command[0]}; install g++, or set CXX")
    return command


@functools.cache
def _text_options() -> tuple[str, ...]:
    known = subprocess.run([*_compiler(), _UNWRITTEN, "-E", "-x", "c++", os.devnull], capture_output=True).returncode == 0
    return (*_TEXT_OPTIONS, _UNWRITTEN) if known else _TEXT_OPTIONS


@functools.cache
def _includes() -> tuple[str, ...]:
    folders = [str(_HERE / "include"), libinfo.find_include_path(), libinfo.find_dlpack_include_path()]
    return tuple(f"-I{folder}" for folder in folders)


def _libraries(runtime: Path) -> list[str]:
    linked = [runtime, Path(libinfo.find_libtvm_ffi())]
    return [*map(str, linked), *(f"-Wl,-rpath,{path.parent}" for path in linked), "-Wl,-Bsymbolic", "-Wl,-z,defs", "-lm"]


def _run(command: Sequence[str], source: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        errors = "\n".join(line for line in done.stderr.splitlines() if "error" in line or "undefined" in line)[:3000]
        raise CompileError(f"the emulator cannot compile the text: {errors or done.stderr[-3000:]}", source)


class CompileError(Exception):
    """The text does not compile; the second argument is the CUDA text, whose lines the message counts."""

    def __str__(self) -> str:
        return str(self.args[0])
