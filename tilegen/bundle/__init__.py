"""Compiled libraries with what a loader must know about them: a folder, or one ``.tilegen`` file."""

from __future__ import annotations

from tilegen.bundle.exporting import add_runtime, export
from tilegen.bundle.manifest import Argument, EntryPoint, Manifest
from tilegen.bundle.pack import archive, read, verify, write

__all__ = ["Argument", "EntryPoint", "Manifest", "add_runtime", "archive", "export", "read", "verify", "write"]
