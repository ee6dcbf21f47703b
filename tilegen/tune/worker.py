"""A warm worker process: answers calls over a pipe until its owner goes away.

``python -m tilegen.tune.worker`` reads frames (four bytes of length, then JSON) from its standard input and answers on
its standard output.  The first frame says what to import; calls name functions as ``"module:function"``.  Whatever a
candidate prints, or breaks, stays in this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import traceback
from typing import Any, BinaryIO

from tilegen.mechanisms import resolve


def write_frame(stream: BinaryIO, value: Any) -> None:
    """Send one JSON value."""
    data = json.dumps(value).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def read_frame(stream: BinaryIO) -> Any:
    """Receive one JSON value.

    Raises
    ------
    EOFError
        When the other side is gone.
    """
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    (size,) = struct.unpack("<I", head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return json.loads(data)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its owner dies, even while it hangs in compiled code (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # died before we asked
        os._exit(1)


def main() -> None:
    """Serve calls until the owner closes the pipe."""
    die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides what ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected here
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # a print of a candidate must not look like an answer
    try:
        setup = read_frame(requests)
        if setup["hide_torch"]:
            sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would import it: 2 s and 300 MB for nothing
        for function in setup["calls"]:
            resolve(function)()
        write_frame(answers, {"ready": os.getpid()})
        while True:
            request = read_frame(requests)
            try:
                answer = {"value": resolve(request["call"])(**request["arguments"])}
            except Exception:
                answer = {"error": traceback.format_exc()}
            write_frame(answers, answer)
    except (EOFError, BrokenPipeError):
        os._exit(0)


if __name__ == "__main__":
    main()
