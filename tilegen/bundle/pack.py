"""Folders and archives of bundles: written whole or not at all, read only when every checksum is right."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tilegen.bundle.manifest import FILE, Manifest
from tilegen.errors import BundleError

SUFFIX = ".tilegen"

_LARGEST = 1 << 30  # bytes of one file; more is not a library but an attack on the memory
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member, so that equal bundles are equal files
_BROKEN = "the bundle is damaged; export it again"


def sha256(data: bytes) -> str:
    """The checksum that manifests hold."""
    return hashlib.sha256(data).hexdigest()


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Seal `folder`: write its ``manifest.json`` with the checksum of every file that lies in it.

    Returns
    -------
    Manifest
        `manifest` with its checksums.

    Raises
    ------
    BundleError
        When the library that the manifest names is not there.
    """
    files = {path.name: sha256(path.read_bytes()) for path in sorted(folder.iterdir()) if _is_content(path)}
    if manifest.library not in files:
        raise BundleError(f"{folder} has no file {manifest.library}; build the library before sealing the bundle")
    sealed = manifest.sealed(files)
    _replace(folder / FILE, sealed.to_json().encode())
    return sealed


def archive(folder: Path, out: Path) -> Path:
    """Pack a bundle folder into one file; equal folders give equal files.

    Raises
    ------
    BundleError
        When the folder is damaged, or `out` cannot be written.
    """
    manifest, files = read(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            try:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
                    for name, data in [(FILE, manifest.to_json().encode()), *sorted(files.items())]:
                        member = zipfile.ZipInfo(name, _EPOCH)
                        member.external_attr = 0o644 << 16
                        packed.writestr(member, data, zipfile.ZIP_DEFLATED, 9)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, out)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror or error}; choose another path") from error
    return out


def read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Read a bundle, folder or archive, and verify it.  Runs no code of it.

    Returns
    -------
    tuple
        The manifest, and the content of every file that it lists.

    Raises
    ------
    BundleError
        When there is no bundle at `path`, it cannot be read, a file is missing, or a checksum is wrong.
    """
    try:
        if path.is_dir():
            return _verified(path, lambda name: (path / name).read_bytes())
        with zipfile.ZipFile(path) as packed:
            return _verified(path, lambda name: _member(packed, name))
    except FileNotFoundError as error:
        missing = Path(error.filename or path)
        what = f"has no file {missing.name}" if missing != path else "does not exist"
        raise BundleError(f"bundle {path} {what}; give the path of a {SUFFIX} file or of a bundle folder") from None
    # A damaged archive surfaces as almost any of zipfile's and zlib's exceptions.
    except (zipfile.BadZipFile, zipfile.LargeZipFile, KeyError, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        raise BundleError(f"bundle {path} is not a readable archive ({error}); {_BROKEN}") from None
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read: {error.strerror or error}; check its permissions") from None


def verify(folder: Path) -> Manifest:
    """The manifest of a bundle folder whose every checksum is right; raises like `read`."""
    return read(folder)[0]


def _is_content(path: Path) -> bool:
    return path.is_file() and path.name != FILE and not path.name.startswith(".")


def _member(packed: zipfile.ZipFile, name: str) -> bytes:
    info = packed.getinfo(name)
    if info.file_size > _LARGEST:
        raise BundleError(f"{name} claims to hold {info.file_size} bytes, at most {_LARGEST} are read; {_BROKEN}")
    try:
        # read() alone would trust the size that the archive states and could unpack far more.
        with packed.open(info) as file:
            return file.read(info.file_size)
    except zlib.error as error:
        raise zipfile.BadZipFile(str(error)) from None


def _verified(path: Path, content: Callable[[str], bytes]) -> tuple[Manifest, dict[str, bytes]]:
    try:
        manifest = Manifest.from_json(content(FILE))
    except BundleError as error:
        raise BundleError(f"bundle {path}: {error}") from None
    files = {}
    for name, want in manifest.files.items():
        files[name] = content(name)
        if sha256(files[name]) != want:
            raise BundleError(f"bundle {path}: {name} does not match its checksum; {_BROKEN}")
    return manifest, files


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
