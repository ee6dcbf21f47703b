"""Every error a user can cause, as a class.

A message names the argument or file, says what it was, what it must be, and what to do about it.
"""

from __future__ import annotations


class TilegenError(Exception):
    """Base class of all errors raised by tilegen."""


class ArgumentError(TilegenError, ValueError):
    """An argument of a public function has the wrong shape, dtype, device or value."""


class ExpressionError(TilegenError):
    """A tensor expression says something that tilegen cannot compile correctly."""


class AutodiffError(TilegenError):
    """A stage that cannot be differentiated; the message names the stage, the read and the remedy."""


class PlanError(TilegenError):
    """A graph that cannot be partitioned into kernels."""


class ScheduleError(TilegenError):
    """A schedule rule or a recorded trace does not fit its kernel."""


class TargetError(TilegenError):
    """A target that does not exist, cannot be reached, or does not match a library."""


class BuildError(TilegenError):
    """Code generation or the host compiler failed."""


class BundleError(TilegenError):
    """A compiled bundle that is damaged, of another version, or for another machine."""


class CacheError(TilegenError):
    """The compile cache cannot be read or written."""


class RecordError(TilegenError):
    """A tuning log or one of its records cannot be used."""


class VersionError(TilegenError):
    """An installed package has a version that is known not to work."""
