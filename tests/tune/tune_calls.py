"""Calls that behave badly on purpose, for worker processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def echo(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def noisy(value: Any) -> Any:
    os.write(1, b"\x00\x00 this is not a frame")
    print("nor is this", flush=True)
    return value


def fail(text: str) -> None:
    raise ValueError(text)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    while True:
        time.sleep(60)


def slow_start() -> None:
    time.sleep(1.0)


def broken_start() -> None:
    raise RuntimeError("no such library")
