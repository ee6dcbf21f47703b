"""The bundles that the tests here load, each compiled once a run."""

from __future__ import annotations

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
