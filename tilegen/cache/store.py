"""The folder of compiled libraries: built once, by one process; verified whenever it is read; rebuilt when damaged.

=================  ============================================================
``libraries/``     one bundle folder for each key, moved here when it is whole
``staging/``       what is being built
``locks/``         one file for each key, locked while it is built
``quarantine/``    damaged entries, the last one of each key, for inspection
=================  ============================================================
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tilegen import settings
from tilegen.bundle import pack
from tilegen.errors import BundleError, CacheError

_PATIENCE = 900.0  # seconds to wait for another process that builds the same key, then build too


@dataclass(frozen=True)
class CacheInfo:
    """What the cache holds: number of libraries, bytes of all files, number of damaged entries set aside."""

    path: Path
    libraries: int
    bytes: int
    quarantined: int


def get_or_build(key: str, builder: Callable[[Path], object]) -> Path:
    """The bundle folder for `key`, built when it is not there or damaged.

    Safe among threads and processes: one of them builds, the others wait.  A hit takes no lock.

    Parameters
    ----------
    key : everything that the library depends on, as text; see `tilegen.cache.fingerprint`.
    builder : writes a sealed bundle (`tilegen.bundle.write`) into the empty folder that it is given.

    Raises
    ------
    CacheError
        When `builder` leaves no valid bundle.  Its own exceptions pass through; nothing is kept then.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:40]
    wanted = settings.cache_dir()
    try:
        return _get_or_build(wanted, name, builder)
    except _Unusable as error:
        fallback = _fallback(wanted, str(error))
        return _get_or_build(fallback, name, builder)


def info() -> CacheInfo:
    """What the cache folder holds."""
    root = settings.cache_dir()
    size = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # moved or removed by another process meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return CacheInfo(root, len(_entries(root / "libraries")), size, len(_entries(root / "quarantine")))


def clear() -> CacheInfo:
    """Remove every compiled library; returns what there was.

    Raises
    ------
    CacheError
        When a file cannot be removed.
    """
    before = info()
    for part in ("libraries", "staging", "quarantine", "locks"):
        try:
            shutil.rmtree(before.path / part)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CacheError(f"cannot remove {before.path / part}: {error}; check its permissions") from error
    return before


class _Unusable(Exception):
    """The cache folder cannot be written."""


def _get_or_build(root: Path, name: str, builder: Callable[[Path], object]) -> Path:
    entry = root / "libraries" / name
    if _intact(entry) is None:
        return entry
    with _writable(root):
        for part in ("libraries", "staging", "quarantine", "locks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        lock = _locked(root / "locks" / f"{name}.lock")
    with lock:
        fault = _intact(entry)
        if fault is None:  # another process built it while this one waited
            return entry
        if os.path.lexists(entry):
            with _writable(root):
                _quarantine(entry, root / "quarantine" / name, fault)
        return _build(root, name, builder)


def _build(root: Path, name: str, builder: Callable[[Path], object]) -> Path:
    entry = root / "libraries" / name
    with _writable(root):
        # Under the lock: what lies here was left by a process that died while it built.
        for left in (root / "staging").glob(f"{name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root / "staging"))
    try:
        builder(staging)
        if fault := _intact(staging):
            raise CacheError(f"the builder left no valid bundle: {fault}; this is a bug in tilegen, please report it")
        with _writable(root):
            staging.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from other users
            try:
                os.replace(staging, entry)
            except OSError:
                if _intact(entry) is not None:  # built by a process that lost patience with the lock
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return entry


def _intact(folder: Path) -> str | None:
    """None for a bundle whose checksums are right, else what is wrong with it."""
    try:
        pack.verify(folder)
    except (BundleError, OSError) as error:
        return str(error)
    return None


def _quarantine(entry: Path, aside: Path, fault: str) -> None:
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    os.replace(entry, aside)
    warnings.warn(f"{fault}. The cached library was set aside in {aside} and is built again.", RuntimeWarning, stacklevel=5)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=_PATIENCE)
    try:
        lock.acquire()
    except (Timeout, OSError, NotImplementedError):
        # Not held: a hanging builder, or a file system without locks.  Entries are moved into place whole, so building
        # twice wastes time and nothing else.
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unusable(f"{error.strerror or error} ({error.filename or root})") from error


_fallbacks: dict[Path, Path] = {}


def _fallback(root: Path, why: str) -> Path:
    """A cache folder for the life of this process, instead of one that cannot be written."""
    if root not in _fallbacks:
        _fallbacks[root] = Path(tempfile.mkdtemp(prefix="tilegen-cache-"))
        atexit.register(_remove, _fallbacks[root], os.getpid())
        warnings.warn(
            f"the cache folder {root} cannot be written: {why}. Libraries compiled now are lost when this process ends; set "
            "TILEGEN_CACHE_DIR to a folder that can be written.",
            RuntimeWarning,
            stacklevel=4,
        )
    return _fallbacks[root]


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child still uses its parent's
        shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
