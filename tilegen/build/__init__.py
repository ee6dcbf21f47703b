"""From a plan to a bundle: targets, schedules applied, code generation, linking.  Importing this imports no TVM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilegen.build.host import host_name

if TYPE_CHECKING:
    from tilegen.mechanisms import Instance
    from tilegen.runtime import Bundle

__all__ = ["compile", "host_name", "load_or_compile"]

FUNCTIONS = ("forward", "backward", "step")


def compile(
    instance: Instance, out: Path, *, target: str | None = None, functions: tuple[str, ...] = FUNCTIONS, tf32: bool = False
) -> Path:
    """Compile `instance` into the bundle folder `out`; see `tilegen.build.library.compile`."""
    from tilegen.build import library

    return library.compile(instance, out, target=target, functions=functions, tf32=tf32)


def load_or_compile(instance: Instance, gpu: int | None = None, wide: bool = False, tf32: bool = False) -> Bundle:
    """The bundle of `instance` for this machine's CPU, or for the GPU numbered `gpu`, from the disk cache if it is there."""
    from tilegen.build import cached

    return cached.load_or_compile(instance, gpu, wide, tf32)
