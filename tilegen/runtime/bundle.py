"""A loaded bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tilegen.bundle import pack
from tilegen.bundle.manifest import OFFSETS, Manifest
from tilegen.errors import BundleError
from tilegen.runtime import library
from tilegen.runtime.function import Function

_DEVICES = {"llvm": "cpu", "cuda": "cuda"}
_SAID: dict[str, tuple[str, ...]] = {"llvm": ("kind", "mcpu", "arch"), "cuda": ("kind", "archs", "host")}


class Bundle:
    """A compiled operator: ``bundle.forward(*inputs)``, ``bundle.backward(...)``, ``bundle.step(...)``.

    Attributes
    ----------
    path : where it was loaded from.
    manifest : what it says about itself.
    functions : its functions by name.
    """

    def __init__(self, path: Path, manifest: Manifest, module: Any) -> None:
        self.path, self.manifest = path, manifest
        device = _DEVICES.get(str(manifest.target.get("kind")), str(manifest.target.get("kind")))
        wide = manifest.target.get(OFFSETS) == 64
        self.functions: dict[str, Function] = {}
        for name, entry in manifest.functions.items():
            try:
                foreign = module.get_function(entry.symbol)
            except Exception:
                raise BundleError(f"bundle {path}: {manifest.library} has no function {entry.symbol}; export it again") from None
            self.functions[name] = Function(name, entry, manifest.static, device, foreign, wide)

    def function(self, name: str) -> Function:
        """The function called `name`; raises `BundleError` when the bundle was built without it."""
        try:
            return self.functions[name]
        except KeyError:
            has = ", ".join(self.functions) or "none"
            raise BundleError(f"bundle {self.path} has no function {name!r}, it has: {has}; export it with {name}") from None

    @property
    def forward(self) -> Function:
        """Inputs to outputs."""
        return self.function("forward")

    @property
    def backward(self) -> Function:
        """Inputs, saved tensors and gradients of the outputs to gradients of the inputs."""
        return self.function("backward")

    @property
    def step(self) -> Function:
        """One time step of decoding: inputs and state to outputs and the next state."""
        return self.function("step")

    def __repr__(self) -> str:
        made = self.manifest
        sizes = ", ".join(f"{name}={size}" for name, size in made.static.items())
        where = " ".join(_words(made.target[key]) for key in _SAID.get(str(made.target.get("kind")), ()) if key in made.target)
        head = f"Bundle {made.op} {made.dtype} [{sizes}] for {where}"
        return "\n  ".join([head, *map(repr, self.functions.values())])


def _words(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def load(path: str | os.PathLike[str]) -> Bundle:
    """Load a bundle, a ``.tilegen`` file or a folder.

    Needs tvm-ffi and numpy; neither torch nor the TVM compiler; CUDA code also a driver.  All checksums, the versions, this
    CPU's instructions and the GPU are checked before any code of the bundle runs.

    Raises
    ------
    BundleError
        When it is damaged, incomplete, or of another schema or tvm-ffi.
    TargetError
        When it was compiled for another architecture, CPU or GPU, or for a GPU and this machine has no driver that runs it.
    """
    path = Path(path)
    manifest, files = pack.read(path)
    library.check_versions(manifest)
    return Bundle(path, manifest, library.load(manifest, files, path if path.is_dir() else None))
