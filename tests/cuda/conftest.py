"""No GPU is needed here: kernels run on the CPU (`tests.cuda.emulator`), and libraries meet a stand-in for the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import scaled
from tilegen.build import library

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator compiled by nvcc for sm_80 and sm_90."""
    out = tmp_path_factory.mktemp("bundle")
    return library.compile(scaled.instance(), out, target="sm_80,sm_90", functions=("forward", "backward"), compiler="nvcc")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``libcuda.so.1`` that does what ``FAKE_*`` variables say."""
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", HERE / "fake_driver.c"], check=True)
    return folder


@pytest.fixture
def on_gpu(driver: Path, tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """``on_gpu(code, capability=75, ...)`` runs Python in a process that has that GPU; gives what it printed and the driver's log."""

    def run(code: str, **said: int) -> tuple[str, list[str]]:
        log = tmp_path / "log"
        log.write_text("")
        environment = os.environ | {f"FAKE_{name.upper()}": str(value) for name, value in said.items()}
        environment |= {"LD_LIBRARY_PATH": str(driver), "FAKE_LOG": str(log)}
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert child.returncode == 0, child.stderr
        return child.stdout, log.read_text().splitlines()

    return run
