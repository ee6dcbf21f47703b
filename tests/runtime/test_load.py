"""Loading: damage, other versions and other machines are one readable error before any code of the bundle runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime import kernels
from tilegen import bundle
from tilegen.bundle import Manifest, machine
from tilegen.errors import ArgumentError, BundleError, TargetError
from tilegen.runtime import library, load

Bare = Callable[..., subprocess.CompletedProcess[str]]

TRAP = r"""
#include <stdio.h>
__attribute__((constructor)) static void run(void) { FILE *f = fopen("%s", "w"); if (f) fclose(f); }
"""


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A bundle folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def trap(copy: Path, tmp_path: Path) -> Path:
    """Puts a library into `copy` that writes this file as soon as it is loaded."""
    source, sprung = tmp_path / "trap.c", tmp_path / "sprung"
    source.write_text(TRAP % sprung)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", copy / "lib.so", source], check=True)
    seal(copy)
    return sprung


def seal(folder: Path, **changes: Any) -> Manifest:
    """Seal a bundle again with a changed manifest, whose checksums are right."""
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    return bundle.write(folder, dataclasses.replace(manifest, **changes))


def test_the_trap_works(copy: Path, trap: Path) -> None:
    with pytest.raises(BundleError, match="has no function scale_forward"):
        load(copy)
    assert trap.exists()


def foreign_targets(target: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "architecture": ({**target, "arch": "riscv64"}, f"compiled for riscv64, this machine is {machine.arch()}"),
        "CPU": (
            {**target, "mcpu": "future", "features": ["avx1024f", *target["features"]]},
            "compiled for future.* lacks avx1024f",
        ),
    }


@pytest.mark.parametrize("which", ["architecture", "CPU"])
def test_library_for_another_machine(copy: Path, trap: Path, which: str) -> None:
    target, says = foreign_targets(bundle.verify(copy).target)[which]
    seal(copy, target=target)
    with pytest.raises(TargetError, match=says):
        load(copy)
    assert not trap.exists()


def test_another_release_of_tvm_ffi(copy: Path, trap: Path) -> None:
    seal(copy, versions={"apache-tvm-ffi": "0.9.3"})
    with pytest.raises(
        BundleError, match=r"built with apache-tvm-ffi 0\.9\.3, installed is .*pip install apache-tvm-ffi==0\.9\.3"
    ):
        load(copy)
    assert not trap.exists()


def test_another_schema(copy: Path, trap: Path) -> None:
    seal(copy, schema=2, tilegen="9.0")
    with pytest.raises(BundleError, match=r"schema 2, this tilegen reads schema 1; .*the tilegen that wrote it \(9\.0\)"):
        load(copy)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["lib.so", "libtvm_runtime.so", "manifest.json"])
def test_a_flipped_byte_in_a_folder(copy: Path, trap: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 4
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} (does not match its checksum|is not JSON).*; the bundle is damaged"):
        load(copy)
    assert not trap.exists()


def test_every_flipped_byte_of_an_archive_is_found_or_harmless(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (small / "lib.so").write_bytes(bytes(range(256)))
    bundle.write(small, dataclasses.replace(bundle.verify(folder), functions={}))
    good = bundle.archive(small, tmp_path / "small.tilegen")
    want, data = bundle.read(good), good.read_bytes()
    found = 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        bad = tmp_path / "bad.tilegen"
        bad.write_bytes(changed)
        try:
            assert bundle.read(bad) == want  # a date, say: it changes nothing that is used
        except BundleError:
            found += 1
    assert found > len(data) // 2


@pytest.mark.parametrize("length", [0, 10, 1000, -1])
def test_a_truncated_archive(archive: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.tilegen").write_bytes(archive.read_bytes()[:length])
    with pytest.raises(BundleError, match="is not a readable archive"):
        load(tmp_path / "cut.tilegen")


def test_a_path_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not exist; give the path of a \.tilegen file or of a bundle folder"):
        load(tmp_path / "none.tilegen")
    with pytest.raises(BundleError, match=r"has no file manifest\.json"):
        load(tmp_path)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "file outside": ((lambda raw: raw["files"].update({"../lib.so": "0"})), r"files has the name '\.\./lib\.so'"),
    "absolute file": ((lambda raw: raw["files"].update({"/lib.so": "0"})), r"files has the name '/lib\.so'"),
    "library not listed": ((lambda raw: raw.update(library="other.so")), r"library is 'other\.so', must be one of"),
    "missing field": ((lambda raw: raw.pop("static")), r"wrong or missing fields \['static'\]"),
    "unknown field": ((lambda raw: raw.update(extra=1)), r"wrong or missing fields \['extra'\]"),
    "static size": ((lambda raw: raw["static"].update(C="16")), r"static\.C is '16', must be of JSON type int"),
    "bool for int": ((lambda raw: raw["static"].update(C=True)), r"static\.C is 'True', must be of JSON type int"),
    "role": (
        (lambda raw: raw["functions"]["forward"]["args"][0].update(role="inout")),
        r"functions\.forward\.args\[0\]\.role is 'inout', must be one of grad_input",
    ),
    "dtype": ((lambda raw: raw["functions"]["step"]["args"][1].update(dtype="object")), r"functions\.step\.args\[1\]\.dtype"),
    "dim": ((lambda raw: raw["functions"]["forward"]["args"][0].update(shape=["__import__('os')"])), "expression of integers"),
    "negative dim": ((lambda raw: raw["functions"]["forward"]["args"][0].update(shape=[-1])), "must not be negative"),
    "unknown size": ((lambda raw: raw["functions"]["forward"]["args"][2].update(shape=["Z"])), r"product needs \['Z'\]"),
    "names": ((lambda raw: raw["functions"]["forward"]["args"][1].update(name="x")), "two arguments of one name"),
    "functions": ((lambda raw: raw.update(functions=[])), "functions is .*, must be of JSON type dict"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "says"), WRONG.values(), ids=WRONG)
def test_a_manifest_that_says_nonsense(copy: Path, edit: Callable[[dict[str, Any]], object], says: str) -> None:
    from tilegen.bundle import manifest

    raw = json.loads((copy / "manifest.json").read_text())
    edit(raw)
    raw["checksum"] = manifest._checksum(raw)  # not damaged, but wrong
    (copy / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=says):
        load(copy)


def test_manifest_survives_its_text(folder: Path) -> None:
    manifest = bundle.verify(folder)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_equal_bundles_are_equal_files(folder: Path, archive: Path, tmp_path: Path) -> None:
    again = bundle.archive(Path(shutil.copytree(folder, tmp_path / "again")), tmp_path / "again.tilegen")
    assert again.read_bytes() == archive.read_bytes()
    assert sorted(zipfile.ZipFile(archive).namelist()) == ["lib.so", "libtvm_runtime.so", "manifest.json"]


def test_archive_leaves_no_part_behind(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"cannot write .*choose another path"):
        bundle.archive(copy, tmp_path / "file" / "x.tilegen")
    (copy / "lib.so").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="checksum"):
        bundle.archive(copy, tmp_path / "x.tilegen")
    assert not list(tmp_path.glob("*.tilegen*"))


BARE = """
import sys
import numpy as np
from tilegen.runtime import load
scale = load(sys.argv[1])
x, w = np.arange(96, dtype=np.float32).reshape(2, 3, 16), np.full(16, 0.5, np.float32)
np.testing.assert_allclose(scale.forward(x, w), x * w + 1)
np.testing.assert_allclose(scale.backward(w, x), x * w)
np.testing.assert_allclose(scale.step(x[:, :1], w)[1], x[:, :1] * w + 1)
"""


@pytest.mark.parametrize("which", ["folder", "archive"])
def test_loads_and_runs_with_tvm_ffi_and_numpy_alone(which: str, bare: Bare, request: pytest.FixtureRequest) -> None:
    done = bare(request.getfixturevalue(which), code=BARE)
    assert done.returncode == 0, done.stderr


def test_threads_that_load_at_once_load_one_runtime(archive: Path, bare: Bare) -> None:
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import tvm_ffi
from tilegen.runtime import load

def use(_):
    return load(sys.argv[1]).forward(np.ones((2, 3, 16), np.float32), np.ones(16, np.float32)).sum()

with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(use, range(16))) == [192] * 16
"""
    for _ in range(3):
        done = bare(archive, code=code)
        assert done.returncode == 0, done.stderr


def test_without_tvm_a_parallel_library_needs_the_runtime(copy: Path, bare: Bare) -> None:
    (copy / "libtvm_runtime.so").unlink()
    seal(copy)
    done = bare(copy, code=BARE)
    assert done.returncode == 1
    assert "BundleError: the library runs in parallel and needs TVM's runtime: the bundle does not carry" in done.stderr


def test_tvm_can_be_imported_after_a_bundle_that_carries_the_runtime(archive: Path) -> None:
    code = f"from tilegen.runtime import load; load({str(archive)!r}); import tvm; print(tvm.runtime.enabled('llvm'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_nothing_stays_unpacked(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scale = load(archive)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_allclose(scale.forward(np.ones((1, 1, 16), np.float32), np.ones(16, np.float32)), 2)


def test_a_folder_that_was_built_again_loads_the_new_library(tmp_path: Path) -> None:
    x, w = np.ones((1, 1, 16), np.float32), np.ones(16, np.float32)
    results = []
    for plus in (1, 2, 1):
        kernels.build(tmp_path / "scale", plus=plus)
        results.append(load(tmp_path / "scale").forward(x, w)[0, 0, 0])
    assert results == [2, 3, 2]


def test_a_library_that_does_not_load(copy: Path) -> None:
    (copy / "lib.so").write_bytes(b"\x7fELF but not really")
    seal(copy)
    with pytest.raises(BundleError, match=r"lib\.so does not load: "):
        load(copy)


def test_cores_come_from_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilegen.runtime import threads

    for i, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{i}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{i}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(threads, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert threads.cores() == 2  # two cores of two threads
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 3})
    assert threads.cores() == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(100, 164)))  # no topology: every processor counts
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads.cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert threads.cores() == 64


def test_threads_that_the_user_chose_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilegen.runtime import threads

    monkeypatch.setattr(os, "environ", {"TVM_NUM_THREADS": "3"})
    threads.configure()
    assert os.environ == {"TVM_NUM_THREADS": "3", "TVM_BIND_THREADS": "0"}
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "1", "TVM_BIND_THREADS": "1"})
    threads.configure()
    assert os.environ == {"OMP_NUM_THREADS": "1", "TVM_BIND_THREADS": "1"}


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    instance: Any = None  # refused before it is looked at
    with pytest.raises(ArgumentError, match="which exists; name a new folder"):
        bundle.export(instance, tmp_path / "full")
    with pytest.raises(ArgumentError, match=r"functions is \['sideways'\], must be some of forward, backward, step"):
        bundle.export(instance, tmp_path / "new", functions=["sideways"])


def test_features_name_what_the_kernel_names() -> None:
    assert machine.required(["avx512f", "sse4.1", "avx512bf16", "fast-lzcnt", "sha"], "x86_64") == [
        "avx512_bf16",
        "avx512f",
        "sse4_1",
    ]
    assert set(machine.required(["avx", "avx2", "fma"], "x86_64")) == {"avx", "avx2", "fma"}
    assert library.needs_runtime(b"..__TVMBackendParallelLaunch..")
    assert not library.needs_runtime(b"serial")
