"""The bundles that the tests here load, each compiled once a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime import kernels
from tilegen import bundle


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``built("float32")``: the folder of a bundle of out = x * w + 1 that carries TVM's runtime library."""
    folders: dict[str, Path] = {}

    def build(dtype: str) -> Path:
        if dtype not in folders:
            folders[dtype] = tmp_path_factory.mktemp("bundles") / dtype
            kernels.build(folders[dtype], dtype=dtype)
            bundle.add_runtime(folders[dtype])
        return folders[dtype]

    return build


@pytest.fixture(scope="session")
def folder(built: Callable[[str], Path]) -> Path:
    """The float32 bundle as a folder; tests must not change it."""
    return built("float32")


@pytest.fixture(scope="session")
def archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 bundle as a file."""
    return bundle.archive(folder, tmp_path_factory.mktemp("archives") / "scale.tilegen")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``bare(*arguments, code=...)`` runs a program that can import tilegen, tvm-ffi, numpy and typing_extensions alone."""
    site = tmp_path_factory.mktemp("site-packages")
    import tvm_ffi

    installed = Path(tvm_ffi.__file__).parents[1]
    for pattern in ("tvm_ffi", "apache_tvm_ffi-*", "numpy", "numpy.libs", "typing_extensions.py"):
        for path in installed.glob(pattern):
            (site / path.name).symlink_to(path)
    (site / "tilegen").symlink_to(Path(bundle.__file__).parents[1])

    def run(*arguments: object, code: str) -> subprocess.CompletedProcess[str]:
        # -S: no site-packages but this one.
        command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
        environment = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=site)

    return run
