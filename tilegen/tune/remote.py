"""Measuring on another machine through TVM's own RPC tracker and servers.

The same gates and clock as in `tilegen.tune.measure`, with the buffers copied to the server and back.  The guard zone
before a buffer stays here: generated code does not accept a tensor that begins inside an allocation, so a write before the
start of a buffer is not seen.  This runs in a measuring process like any other; which server it asks for is in its
environment.

An RPC server runs whatever it is sent.  Start tracker and servers on addresses that only your own machines can reach.
TVM's server ends when a candidate crashes in it: run it in a loop that starts it again.
"""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path
from typing import Any

from tilegen import _tvm
from tilegen.errors import ArgumentError
from tilegen.tune import measure as near
from tilegen.tune.local import Backend

ADDRESS, KEY = "TILEGEN_RPC", "TILEGEN_RPC_KEY"
SESSION_SECONDS = 120
"""After this the server ends a session: a candidate that hangs there does not hold the device for ever."""


def backend() -> Backend:
    """The backend whose measuring process asks a tracker for a device; building goes on meanwhile."""
    here = "tilegen.tune.remote"
    return Backend(
        setup=f"{here}:setup",
        measure=f"{here}:measure",
        rank=f"{here}:rank",
        outputs=f"{here}:outputs",
        copy_bandwidth=f"{here}:copy_bandwidth",
        overlap=True,
    )


def environment(address: str, key: str) -> dict[str, str]:
    """What tells a measuring process where to ask.

    Raises
    ------
    ArgumentError
        When `address` is not ``HOST:PORT``, or `key` is empty.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ArgumentError(f"rpc is {address!r}, must be HOST:PORT of a tracker, for instance 127.0.0.1:9190")
    if not key:
        raise ArgumentError("key is empty, must be the name under which the servers registered at the tracker")
    return {ADDRESS: address, KEY: key}


def setup() -> None:
    """Import TVM; the connection is made at the first call."""
    _tvm.ensure()
    import tvm.rpc  # noqa: F401


_numbers = itertools.count()


@functools.cache
def session() -> Any:
    """The connection of this process."""
    from tvm import rpc

    host, _, port = os.environ[ADDRESS].rpartition(":")
    return rpc.connect_tracker(host, int(port)).request(os.environ[KEY], session_timeout=SESSION_SECONDS)


class Remote(near.Loaded):
    """A candidate and its buffers on the server."""

    def open(self, library: str, symbol: str) -> None:
        """Send the library and allocate the buffers there."""
        import tvm

        # The server may have one of this name open, and writing over a mapped library crashes it.
        name = f"{os.getpid()}-{next(_numbers)}-{Path(library).name}"
        session().upload(library, target=name)
        self.module, self.symbol, self.device = session().load_module(name), symbol, session().cpu(0)
        self.function = self.module[symbol]
        self.rooms = [tvm.runtime.empty(b.guarded.shape, "uint8", self.device) for b in self.buffers]
        described = [b.argument for b in self.buffers]
        self.arguments = [room._create_view(a.shape, a.dtype, 0) for room, a in zip(self.rooms, described, strict=True)]
        self.send()

    def send(self) -> None:
        for room, buffer in zip(self.rooms, self.buffers, strict=True):
            room.copyfrom(buffer.guarded)

    def fetch(self) -> None:
        for room, buffer in zip(self.rooms, self.buffers, strict=True):
            buffer.guarded[...] = room.numpy()

    def loops(self) -> int:
        self()
        return max(1, min(1000, int(near.SAMPLE / max(self._time(1), 1e-7))))

    def sample(self, loops: int) -> float:
        return self._time(loops)

    def _time(self, loops: int) -> float:
        """Mean seconds by the server's clock, its caches flushed before."""
        clock = self.module.time_evaluator(
            self.symbol, self.device, number=loops, repeat=1, f_preproc="cache_flush_cpu_non_first_arg"
        )
        return float(clock(*self.arguments).results[0])


measure = functools.partial(near.measure, load=Remote)
rank = functools.partial(near.rank, load=Remote)
outputs = functools.partial(near.outputs, load=Remote)


def copy_bandwidth() -> float:
    """Bytes per second of copying a large tensor on the server, each byte counted as read and as written."""
    import time

    import tvm

    size = 64 << 20
    rooms = [tvm.runtime.empty((size,), "uint8", session().cpu(0)) for _ in range(2)]
    best = 0.0
    for _ in range(4):
        begin = time.perf_counter()
        rooms[0].copyto(rooms[1])
        best = max(best, 2 * size / (time.perf_counter() - begin))
    return best
