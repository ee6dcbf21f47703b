"""From an operator's name to a file that another program calls: Python without TVM, and C++."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime import kernels
from tilegen import bundle, mechanisms
from tilegen.build import link
from tilegen.errors import BuildError
from tilegen.runtime import load

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundles.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forward of element-wise attention with C = 16, as the document's C++ program calls it."""
    found = mechanisms.get("elementwise_attention")
    instance = mechanisms.Instance(found, found.config(order=2), {"C": 16}, "float32")
    return bundle.export(instance, tmp_path_factory.mktemp("exported") / "ea.tilegen", functions=("forward",))


def test_exported_operator_runs_where_nothing_else_is_installed(
    exported: Path, tmp_path: Path, bare: Callable[..., object]
) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 33, 16), np.float32) for _ in range(3))
    np.savez(tmp_path / "inputs.npz", q=q, k=k, v=v)
    code = """
import sys
import numpy as np
from tilegen.runtime import load
inputs = np.load(sys.argv[2])
np.save(sys.argv[2] + ".out.npy", load(sys.argv[1]).forward(inputs["q"], inputs["k"], inputs["v"]))
"""
    done = bare(exported, tmp_path / "inputs.npz", code=code)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    y = np.load(tmp_path / "inputs.npz.out.npy")
    np.testing.assert_array_equal(y, load(exported).forward(q, k, v))
    np.testing.assert_allclose(y[:, 0], v[:, 0], rtol=1e-5, atol=1e-5)  # the first causal row attends to itself alone


def test_a_folder_holds_the_same_as_a_file(exported: Path, tmp_path: Path) -> None:
    made = bundle.verify(unpacked(exported, tmp_path / "ea"))
    assert set(made.files) == {"lib.so", "libtvm_runtime.so"}
    assert list(made.functions) == ["forward"]


def unpacked(archive: Path, folder: Path) -> Path:
    shutil.unpack_archive(archive, folder, "zip")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program of the document, compiled as the document says."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler is installed")
    folder = tmp_path_factory.mktemp("cpp")
    blocks = re.search(r"```cpp\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert blocks is not None
    (folder / "main.cc").write_text(blocks[1])

    def config(option: str) -> list[str]:
        command = [sys.executable, "-m", "tvm_ffi.config", option]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    flags = [*config("--cxxflags"), *config("--ldflags"), *config("--libs"), "-ldl", f"-Wl,-rpath,{config('--libdir')[0]}"]
    subprocess.run(["g++", "-std=c++17", "main.cc", "-o", "main", *flags], cwd=folder, check=True)
    return folder / "main"


def test_the_documents_cpp_program_runs_the_bundle(program: Path, exported: Path, tmp_path: Path) -> None:
    folder = unpacked(exported, tmp_path / "ea")
    done = subprocess.run([program, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # The first causal row of the output is the first row of v, which the program fills with i % 7.
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], np.arange(16) % 7, rtol=1e-5, atol=1e-5)


def test_the_documents_cpp_program_says_what_is_missing(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "libtvm_runtime.so" in done.stderr


def test_linking_is_deterministic(tmp_path: Path) -> None:
    one, other = (kernels.build(tmp_path / name) for name in ("one", "other"))
    assert one.files == other.files


def test_serial_library_needs_no_runtime(tmp_path: Path) -> None:
    kernels.build(tmp_path / "serial", parallel=False)
    bundle.add_runtime(tmp_path / "serial")
    assert set(bundle.verify(tmp_path / "serial").files) == {"lib.so"}
    out = load(tmp_path / "serial").forward(np.ones((2, 3, 16), np.float32), np.full(16, 2, np.float32))
    np.testing.assert_array_equal(out, np.full((2, 3, 16), 3))


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PATH": ""}, "no C compiler was found .*apt install gcc"),
        ({"CC": "nosuchcompiler -m64"}, "CC is 'nosuchcompiler -m64', which is not a program"),
    ],
)
def test_without_a_compiler_the_error_says_what_to_install(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=says):
        link.driver()


def test_failing_linker_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'out of mana' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    def export_library(name: str, fcompile: Callable[..., None]) -> None:
        fcompile(name, ["a.o"])

    with pytest.raises(BuildError, match=r"exit status 3; command: .*cc -shared .* a\.o -lm\nout of mana"):
        link.link(SimpleNamespace(export_library=export_library), tmp_path / "lib.so")
