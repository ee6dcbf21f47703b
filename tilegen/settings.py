"""Where things are kept.  Environment variables win over the platform's conventions.

=========================  ==========================================  ==============================
variable                   what                                        default (Linux)
=========================  ==========================================  ==============================
``TILEGEN_CACHE_DIR``      compiled libraries, rebuilt when lost       ``~/.cache/tilegen``
``TILEGEN_LOG_DIR``        tuning records that this user has searched  ``~/.local/share/tilegen/tuning_logs``
``TILEGEN_DEBUG``          ``1``: also check the values of inputs      off
``TILEGEN_CUDA_COMPILER``  ``nvcc`` or ``nvrtc``                       nvcc where it is found
=========================  ==========================================  ==============================
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of compiled libraries; it may not exist yet."""
    return _from_environment("TILEGEN_CACHE_DIR") or _platform("user_cache_path")


def log_dir() -> Path:
    """The folder of this user's own tuning records; it may not exist yet."""
    return _from_environment("TILEGEN_LOG_DIR") or _platform("user_data_path") / "tuning_logs"


def shipped_log_dir() -> Path:
    """The folder of the records that came with the package."""
    from importlib.resources import files

    return Path(str(files("tilegen.tuning_logs")))


def debug() -> bool:
    """Whether values of inputs are checked too, at the price of a host synchronisation."""
    return os.environ.get("TILEGEN_DEBUG", "").lower() in {"1", "true", "yes", "on"}


def cuda_compiler() -> str:
    """The CUDA compiler that the user wants, in small letters; empty when it is left to us."""
    return os.environ.get("TILEGEN_CUDA_COMPILER", "").lower()


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value).expanduser().absolute() if value else None


def _platform(function: str) -> Path:
    # Imported late: loading a bundle needs neither this package nor these folders.
    import platformdirs

    path: Path = getattr(platformdirs, function)("tilegen", appauthor=False)
    return path
