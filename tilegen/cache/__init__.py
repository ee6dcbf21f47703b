"""Compiled libraries on disk, so that a machine compiles an operator once."""

from __future__ import annotations

from tilegen.cache.fingerprint import fingerprint
from tilegen.cache.store import CacheInfo, clear, get_or_build, info

__all__ = ["CacheInfo", "clear", "fingerprint", "get_or_build", "info"]
