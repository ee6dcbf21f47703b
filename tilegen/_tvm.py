"""The one door to TVM: checks the installed versions, then makes importing it bearable.

Everything that imports TVM calls `ensure` first::

    from tilegen import _tvm

    _tvm.ensure()
    import tvm
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata

from tilegen.errors import VersionError

# (package, lowest release, release that is too new, why).
REQUIRED = (
    ("apache-tvm", (0, 27), (0, 28), "tilegen is written for the tensor IR of TVM 0.27"),
    ("apache-tvm-ffi", (0, 1, 14), (0, 1, 15), "0.1.15 crashes on every serialisation of IR, older ones lack functions"),
)
MEND = "pip install 'apache-tvm>=0.27,<0.28' 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"

_ready = False


def release(version: str) -> tuple[int, ...]:
    """The numeric release of a version: ``"0.1.14.post1"`` -> ``(0, 1, 14)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None; reads metadata only."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def problems(version_of: Callable[[str], str | None] = installed) -> list[str]:
    """What is wrong with the installed compiler, one sentence a package; empty when all is well."""
    found = []
    for package, low, high, why in REQUIRED:
        version = version_of(package)
        want = f"at least {_dotted(low)} and below {_dotted(high)}"
        if version is None:
            found.append(f"{package} is not installed, must be {want}")
        elif not low <= release(version) < high:
            found.append(f"{package} is {version}, must be {want} ({why})")
    return found


def check(version_of: Callable[[str], str | None] = installed) -> None:
    """Raise `VersionError` unless the installed TVM and tvm-ffi work together.

    It runs before TVM is imported, because the wrong pair does not raise: it crashes.
    """
    found = problems(version_of)
    if found:
        raise VersionError(f"{'; '.join(found)}. Mend it with: {MEND}")


def ensure() -> None:
    """Make ``import tvm`` safe and fast.  Calling it again costs nothing.

    Raises
    ------
    VersionError
        When the installed versions are known not to work.
    """
    global _ready
    if _ready:
        return
    check()
    worker_init()
    from tilegen.runtime import threads

    threads.configure()  # before TVM makes its thread pool; build and measuring workers inherit it
    _ready = True


def worker_init() -> None:
    """Make TVMScript parse fast in this process; the initializer of build and measuring workers.

    TVM calls `inspect.stack` once per script function, and that looks up the module of every frame by scanning
    ``sys.modules``: importing TVM's tensor intrinsics beside torch takes half a minute, longer than the time a worker
    is given.  The replacement reads the same frames without the scan.  Everything it needs is inside the function,
    since workers receive it by value.
    """
    import inspect
    import linecache
    import sys

    if getattr(inspect.stack, "without_scan", False):
        return

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        frame, infos = sys._getframe(1), []
        while frame is not None:
            code = frame.f_code
            # Code from exec has no file; linecache would search all of sys.path for it.
            line = "" if code.co_filename.startswith("<") else linecache.getline(code.co_filename, frame.f_lineno)
            lines = [line] if line and context else None
            infos.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, lines, 0))
            frame = frame.f_back  # type: ignore[assignment]
        return infos

    stack.without_scan = True  # type: ignore[attr-defined]
    inspect.stack = stack


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))
