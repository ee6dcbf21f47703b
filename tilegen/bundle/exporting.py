"""Delivering a compiled operator: one file or folder that runs where TVM is not installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tilegen.bundle import pack
from tilegen.bundle.manifest import RUNTIME
from tilegen.errors import ArgumentError, BuildError, BundleError
from tilegen.mechanisms import Instance

FUNCTIONS = ("forward", "backward", "step")


def export(
    instance: Instance,
    out: str | os.PathLike[str],
    *,
    target: str | None = None,
    functions: Sequence[str] = FUNCTIONS,
    tf32: bool = False,
) -> Path:
    """Compile `instance` and write it, with all that loading it needs, to `out`.

    Parameters
    ----------
    instance : what to compile; see `tilegen.mechanisms.Instance`.
    out : a file whose name ends in ``.tilegen``, which is replaced, or the name of a folder, which must not exist or be empty.
    target : "cpu" (this machine, the default) or a CPU's name such as "x86-64-v3"; "cuda" for this machine's GPU, or the names
        of one or several GPU architectures: "sm_90", "sm_80,sm_90".
    functions : which of forward, backward and step the bundle holds; step is left out where the operator has none.
    tf32 : whether products of float32 tensors are in TF32, on GPUs from sm_80 on; a bundle does not ask torch.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ArgumentError
        When a function does not exist, or `out` is a folder with something in it.
    BuildError, TargetError, ...
        When compiling fails.
    BundleError
        When `out` cannot be written.
    """
    out = Path(out)
    if not functions or set(functions) - set(FUNCTIONS):
        raise ArgumentError(f"functions is {list(functions)}, must be some of {', '.join(FUNCTIONS)}")
    if out.suffix != pack.SUFFIX and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArgumentError(f"out is {out}, which exists; name a new folder, or a file that ends in {pack.SUFFIX}")
    if out.suffix == pack.SUFFIX and out.is_dir():
        raise ArgumentError(f"out is {out}, a folder; name a file")
    from tilegen import build

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
            folder = Path(staging) / "bundle"
            folder.mkdir()
            build.compile(instance, folder, target=target, functions=tuple(functions), tf32=tf32)
            add_runtime(folder)
            if out.suffix == pack.SUFFIX:
                return pack.archive(folder, out)
            os.replace(folder, out)  # replaces an empty folder, never a full one
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror or error}; choose another path") from error
    return out


def add_runtime(folder: Path) -> None:
    """Put TVM's runtime library into a sealed bundle folder whose library calls it, and seal it again.

    Raises
    ------
    BuildError
        When the library needs it and TVM is not installed here.
    """
    from tilegen.runtime import library

    manifest, files = pack.read(folder)
    if not library.needs_runtime(files[manifest.library]):
        return
    runtime = library.installed_runtime()
    if runtime is None:
        raise BuildError(
            f"the library runs in parallel and needs {RUNTIME}, which is not in the installed tvm; reinstall apache-tvm"
        )
    shutil.copyfile(runtime, folder / RUNTIME)
    pack.write(folder, manifest)
