"""Bundles of this machine through the disk cache: a hit imports no TVM."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilegen import cache, settings
from tilegen.build import gpus
from tilegen.build.host import cores, host_name
from tilegen.bundle import machine
from tilegen.cache.fingerprint import fingerprint
from tilegen.runtime import load

if TYPE_CHECKING:
    from tilegen.mechanisms import Instance
    from tilegen.runtime import Bundle

_loaded: dict[str, Bundle] = {}
_lock = threading.Lock()


def load_or_compile(instance: Instance, gpu: int | None = None, wide: bool = False, tf32: bool = False) -> Bundle:
    """The bundle of `instance` for this machine's CPU, or for the GPU numbered `gpu`: from this process, from the disk cache, or
    compiled now.  `wide` is for tensors of 2^31 elements and more, `tf32` for products of float32 tensors in TF32."""
    more = {name: True for name, asked in (("wide", wide), ("tf32", tf32)) if asked}
    key = fingerprint(instance, host() if gpu is None else device(gpu), records(), **more)
    with _lock:
        if key not in _loaded:

            def build(out: Path) -> None:
                from tilegen.build import FUNCTIONS, library

                functions = FUNCTIONS if instance.mechanism.step else FUNCTIONS[:2]
                library.compile(
                    instance,
                    out,
                    target=None if gpu is None else f"cuda:{gpu}",
                    functions=functions,
                    compiler="nvrtc",
                    wide=wide,
                    tf32=tf32,
                )

            _loaded[key] = load(cache.get_or_build(key, build))
        return _loaded[key]


def host() -> dict[str, Any]:
    """What decides the code that is generated for this machine."""
    return {"device": host_name(), "features": sorted(machine.flags()), "cores": cores()}


def device(gpu: int) -> dict[str, Any]:
    """What decides the code that is generated for a GPU; its launchers are the processor's."""
    card = dataclasses.asdict(gpus.of_device(gpu))
    return {"kind": "cuda", "host": machine.arch(), "compiler": settings.cuda_compiler(), **card}


def records() -> list[str]:
    """The state of every tuning log that a lookup could read: another record may mean another schedule."""
    return [f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(_logs())]


def _logs() -> Iterator[Path]:
    import tilegen.tuning_logs

    for root in (settings.log_dir(), Path(tilegen.tuning_logs.__file__).parent):
        yield from root.rglob("*.jsonl")
