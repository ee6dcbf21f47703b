"""The compile cache: one build among processes, nothing half-written is ever used, damage is set aside with one warning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tilegen import cache
from tilegen.bundle import Manifest, write
from tilegen.errors import CacheError


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bundle(folder: Path, content: bytes = b"library") -> None:
    (folder / "lib.so").write_bytes(content)
    write(folder, Manifest("scale", {}, "float32", {"C": 16}, ("B",), {"kind": "llvm"}, {}, "0.1.0"))


class Builder:
    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, folder: Path) -> None:
        self.builds += 1
        bundle(folder)


def test_second_call_is_a_hit_and_other_keys_are_not(root: Path) -> None:
    build = Builder()
    first = cache.get_or_build("a", build)
    assert first.is_relative_to(root)
    assert cache.get_or_build("a", build) == first
    assert build.builds == 1
    assert cache.get_or_build("b", build) != first
    assert build.builds == 2
    assert cache.info().libraries == 2


def flip(entry: Path) -> None:
    data = bytearray((entry / "lib.so").read_bytes())
    data[3] ^= 1
    (entry / "lib.so").write_bytes(data)


def unreadable(entry: Path) -> None:
    (entry / "lib.so").unlink()
    (entry / "lib.so").mkdir()  # reading it is an error for every user, root included


def change_manifest(entry: Path) -> None:
    path = entry / "manifest.json"
    path.write_text(path.read_text().replace('"C": 16', '"C": 17'))


def cut_manifest(entry: Path) -> None:
    os.truncate(entry / "manifest.json", 40)


def lose_file(entry: Path) -> None:
    (entry / "lib.so").unlink()


def replace_by_file(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_bytes(b"PK\x03\x04 not a folder")


@pytest.mark.parametrize("damage", [flip, unreadable, change_manifest, cut_manifest, lose_file, replace_by_file])
def test_damaged_entry_is_set_aside_with_one_warning_and_rebuilt(damage: Callable[[Path], None], root: Path) -> None:
    build = Builder()
    entry = cache.get_or_build("a", build)
    damage(entry)
    with pytest.warns(RuntimeWarning, match="set aside in .* built again") as caught:
        assert cache.get_or_build("a", build) == entry
    assert len(caught) == 1
    assert build.builds == 2
    assert cache.info().quarantined == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.get_or_build("a", build)
    damage(entry)  # a second time: the older one gives way
    with pytest.warns(RuntimeWarning):
        cache.get_or_build("a", build)
    assert (build.builds, cache.info().quarantined) == (3, 1)


def test_error_of_the_builder_passes_through_and_leaves_nothing(root: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "lib.so").write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        cache.get_or_build("a", fails)
    assert list((root / "staging").iterdir()) == []
    assert cache.get_or_build("a", Builder()).is_dir()


def test_builder_without_a_valid_bundle_is_an_error() -> None:
    with pytest.raises(CacheError, match="no valid bundle"):
        cache.get_or_build("a", lambda folder: None)
    assert cache.info().libraries == 0


def test_unwritable_folder_falls_back_to_a_temporary_one_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TILEGEN_CACHE_DIR", str(tmp_path / "file" / "cache"))  # cannot be made, not even by root
    build = Builder()
    with pytest.warns(RuntimeWarning, match=r"cannot be written.*TILEGEN_CACHE_DIR") as caught:
        entries = [cache.get_or_build(key, build) for key in "aab"]
    assert len(caught) == 1
    assert build.builds == 2
    assert entries[0] == entries[1] != entries[2]
    assert not entries[0].is_relative_to(tmp_path)


def test_hit_in_a_folder_that_cannot_be_written_needs_no_lock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    entry = cache.get_or_build("a", build)
    for part in ("locks", "staging"):
        for path in (root / part).iterdir():
            path.unlink()
        (root / part).rmdir()
        (root / part).touch()  # neither a lock nor a staging folder can be made
    assert cache.get_or_build("a", build) == entry
    assert build.builds == 1


def test_clear_removes_everything(root: Path) -> None:
    cache.get_or_build("a", Builder())
    before = cache.clear()
    assert before.libraries == 1
    assert before.bytes > 0
    assert cache.info() == cache.CacheInfo(root, 0, 0, 0)
    build = Builder()
    cache.get_or_build("a", build)
    assert build.builds == 1


def test_command_says_what_there_is_and_clears_it(root: Path) -> None:
    from typer.testing import CliRunner

    from tilegen.cli.app import app

    cache.get_or_build("a", Builder())
    said = CliRunner().invoke(app, ["cache"]).output
    assert f"{root}: 1 libraries" in said
    assert json.loads(CliRunner().invoke(app, ["cache", "--clear", "--json"]).output)["libraries"] == 1
    assert cache.info().libraries == 0


RACER = """
import sys, time
from pathlib import Path
from tests.runtime.test_cache import bundle
from tilegen import cache

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    if sys.argv[2] == "hang":
        (folder / "lib.so").write_bytes(b"half")
        print("building", flush=True)
        time.sleep(60)
    time.sleep(0.3)
    bundle(folder)

print(cache.get_or_build("a", build))
"""


def race(log: Path, how: str) -> subprocess.Popen[str]:
    repository = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(log), how], cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_need_one_key_build_it_once(tmp_path: Path) -> None:
    processes = [race(tmp_path / "log", "build") for _ in range(4)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == 1
    assert (tmp_path / "log").read_text() == "built\n"


def test_process_killed_while_it_builds_leaves_the_key_to_the_next(tmp_path: Path, root: Path) -> None:
    dying = race(tmp_path / "log", "hang")
    assert dying.stdout is not None
    assert dying.stdout.readline() == "building\n"
    waiting = race(tmp_path / "log", "build")
    time.sleep(0.2)
    dying.send_signal(signal.SIGKILL)
    dying.wait(10)
    out = waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0
    assert Path(out.strip()).is_dir()
    assert list((root / "staging").iterdir()) == []  # what the dead one left is gone
    assert (tmp_path / "log").read_text() == "built\n" * 2
