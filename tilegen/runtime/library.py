"""Loading a verified library into this process, with what it needs from tvm-ffi and from TVM's runtime."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilegen.bundle import gpu, machine
from tilegen.bundle.manifest import CUBIN, RUNTIME, Manifest
from tilegen.errors import BundleError
from tilegen.runtime import cubin, threads

# What parallel loops and workspaces call; tvm-ffi fills in these addresses while it loads a library that names them.
_BACKEND = b"__TVMBackend"
_FFI = "apache-tvm-ffi"

_loading = threading.Lock()


def check_versions(manifest: Manifest) -> None:
    """Raise unless this machine and the installed tvm-ffi can run the bundle.  Runs no code of it.

    Raises
    ------
    TargetError
        For another architecture, a CPU without the instructions that the library uses, or, with CUDA code, no GPU or driver
        that can run it.
    BundleError
        For another release of tvm-ffi, whose binary interface may differ, or none at all.
    """
    machine.check(manifest.target)
    if manifest.target.get("kind") == "cuda":
        gpu.check(manifest.target, manifest.versions.get("cuda", ""))
    installed = _tvm_ffi().__version__
    built = manifest.versions.get(_FFI, "")
    if _release(installed) != _release(built):
        raise BundleError(
            f"the bundle was built with {_FFI} {built or 'of unknown version'}, installed is {installed}; export the bundle "
            f"again, or install the other: pip install {_FFI}=={built}"
        )


def load(manifest: Manifest, files: Mapping[str, bytes], folder: Path | None) -> Any:
    """Load the library of a verified bundle and return its module: of tvm-ffi, or of the driver for kernels without launchers.

    Parameters
    ----------
    manifest, files : what `tilegen.bundle.read` returned.
    folder : where the files lie, or None when they come from an archive.

    Raises
    ------
    BundleError
        When the library or TVM's runtime library does not load.
    """
    if manifest.library.endswith(CUBIN):
        return cubin.Module(manifest, files)
    ffi = _tvm_ffi()
    with contextlib.ExitStack() as stack:
        if folder is None or _mapped_otherwise(folder / manifest.library, manifest.files[manifest.library]):
            folder = stack.enter_context(_unpacked(files))
        if needs_runtime(files[manifest.library]):
            with _loading:  # or two threads would load two copies
                _load_runtime(ffi, folder / RUNTIME if RUNTIME in files else None)
        try:
            return ffi.load_module(str(folder / manifest.library))
        except Exception as error:  # tvm-ffi raises RuntimeError with the loader's words in it
            raise BundleError(f"{manifest.library} does not load: {_last_line(error)}") from None


_mapped: dict[Path, str] = {}


def _mapped_otherwise(path: Path, checksum: str) -> bool:
    """Whether this process has mapped another library under this name: the loader would return that one again."""
    return _mapped.setdefault(path.resolve(), checksum) != checksum


@contextlib.contextmanager
def _unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """The files of an archive as files, for as long as the loader needs their names: a mapped library outlives its name."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="tilegen-"))
    except OSError as error:
        raise BundleError(f"no folder to unpack the library into: {error}; set TMPDIR to one that can be written") from None
    try:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        yield folder
    except OSError as error:
        raise BundleError(f"cannot unpack the library: {error}; set TMPDIR to a folder with space") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load_runtime(ffi: Any, carried: Path | None) -> None:
    """Make TVM's runtime library present, once in a process.

    The copy beside an installed TVM is preferred to the one that the bundle carries: a second copy registers its functions
    again, and tvm-ffi aborts the process, so nothing could import TVM afterwards.
    """
    threads.configure()
    if ffi.get_global_func("runtime.NumThreads", allow_missing=True) is not None:
        return
    reasons = []
    for path in filter(None, (installed_runtime(), carried)):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reasons.append(str(error))
        else:
            return
    why = "; ".join(reasons) or f"the bundle does not carry {RUNTIME} and TVM is not installed"
    raise BundleError(f"the library runs in parallel and needs TVM's runtime: {why}; export it again with `tilegen export`")


def needs_runtime(library: bytes) -> bool:
    """Whether a library calls TVM's runtime: for parallel loops, or for workspaces of its own."""
    return _BACKEND in library


def installed_runtime() -> Path | None:
    """TVM's runtime library in an installed TVM, found without importing it; what an exported bundle carries."""
    spec = importlib.util.find_spec("tvm")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(root) / "lib" / RUNTIME).is_file():
            return path
    return None


def _tvm_ffi() -> Any:
    try:
        import tvm_ffi
    except ImportError as error:
        raise BundleError(f"a bundle needs tvm-ffi, which does not import ({error}); pip install apache-tvm-ffi") from None
    return tvm_ffi


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
