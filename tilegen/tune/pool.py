"""Warm worker processes that may crash or hang without anybody else noticing.

TVM's own workers start anew for every batch and count the seconds of their imports against the candidate, so that on a
small machine every build "times out" without a word.  Here a worker is started once, its clock starts when the call is
sent to a worker that said it is ready, and one that cannot start is an error that shows why.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from tilegen.errors import BuildError
from tilegen.tune.worker import read_frame, write_frame

START_SECONDS = 120.0
"""Starting imports TVM: 1 s alone, much more when every core of a small machine does the same."""


@dataclass(frozen=True, eq=False)
class Job:
    """A call for a worker: ``"module:function"``, JSON arguments, and the seconds it may take.

    `topic`: what the worker may still know from an earlier job of the same topic, so that it gets this one rather than another one.
    """

    call: str
    arguments: dict[str, Any]
    timeout: float
    tag: Any = None
    topic: str = ""


@dataclass(frozen=True)
class Reply:
    """What came of a job: a value, or why there is none ("error": it raised; "crash"; "timeout")."""

    job: Job
    kind: str
    value: Any = None
    message: str = ""
    seconds: float = 0.0
    """From the call to the answer."""


@dataclass
class Worker:
    """One process and what it is doing."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    limit: float
    """When it will be given up, on the monotonic clock."""
    ready: bool = False
    job: Job | None = None
    begun: float = 0.0
    done: int = 0
    topics: set[str] = field(default_factory=set)

    def last_words(self, size: int = 2000) -> str:
        """The end of what it wrote to its standard error."""
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - size))
        return self.log.read().decode(errors="replace").strip()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


@dataclass
class Pool:
    """At most `size` workers, used from one thread.

    Parameters
    ----------
    setup : functions (``"module:function"``) that each worker calls once, before it is ready.
    recycle : calls after which a worker is replaced, so that what leaks stays small.
    hide_torch : make ``import torch`` fail in the workers.
    environment : variables added to the workers' environment.
    """

    size: int
    setup: Sequence[str] = ()
    recycle: int = 200
    hide_torch: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workers: list[Worker] = []
        self._waiting: deque[Job] = deque()
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Start what is missing, without waiting: imports overlap with what the caller does meanwhile."""
        while len(self._workers) < self.size:
            self._start_one()

    def run(self, jobs: Iterable[Job], deadline: float = float("inf")) -> Iterator[Reply]:
        """Yield a reply per job as they come; jobs not done by `deadline` (monotonic) are dropped, their workers killed.

        Raises
        ------
        BuildError
            When a worker cannot start; the message has the end of its standard error.
        """
        source = iter(jobs)
        try:
            while True:
                # Jobs are made one step ahead of the workers, while these work on the ones before.
                while len(self._waiting) < self.size and (job := next(source, None)) is not None:
                    self.submit(job)
                if not self.load or time.monotonic() >= deadline:
                    return
                yield from self.poll(deadline - time.monotonic())
        finally:
            self.drop()

    def submit(self, job: Job) -> None:
        """Queue a job; its reply comes from a later `poll`."""
        self._waiting.append(job)

    @property
    def load(self) -> int:
        """Jobs that are queued or being worked on."""
        return len(self._waiting) + sum(w.job is not None for w in self._workers)

    def poll(self, seconds: float) -> list[Reply]:
        """Hand queued jobs to workers and wait at most `seconds` (and 1) for replies; there may be none.

        Raises
        ------
        BuildError
            When a worker cannot start.
        """
        self.hand_out()
        found = list(self._collect(time.monotonic() + seconds))
        self.hand_out()  # what came free works on while the replies are looked at
        return found

    def withdraw(self) -> list[Job]:
        """Take back the jobs that no worker has begun."""
        found = list(self._waiting)
        self._waiting.clear()
        return found

    def drop(self) -> None:
        """Forget what is queued and kill those that work on something."""
        self._waiting.clear()
        for worker in [w for w in self._workers if w.job]:
            self._remove(worker)

    def knows(self, topic: str) -> bool:
        """Whether a worker had a job of this topic."""
        return any(topic in worker.topics for worker in self._workers)

    def fileno(self) -> int:
        """What becomes readable when a reply may have come: pools can be waited for together, see `attend`."""
        return self._selector.fileno()  # type: ignore[attr-defined, no-any-return]

    def discard(self) -> None:
        """Forget what is queued and kill all workers; new ones start when needed.  For memory that a candidate may have spoiled."""
        self._waiting.clear()
        for worker in list(self._workers):
            self._remove(worker)

    close = discard

    def hand_out(self) -> None:
        """Give queued jobs to workers that are free, and start those that are missing."""
        waiting = self._waiting
        while len(self._workers) < min(self.size, self.load):
            self._start_one()
        for worker in list(self._workers):
            if waiting and worker.ready and worker.job is None:
                job = next((job for job in waiting if job.topic in worker.topics), waiting[0])
                waiting.remove(job)
                try:
                    write_frame(worker.process.stdin, {"call": job.call, "arguments": job.arguments})  # type: ignore[arg-type]
                except BrokenPipeError:  # it died after its last job: this one is not to blame
                    waiting.appendleft(job)
                    self._remove(worker)
                    continue
                worker.topics.add(job.topic)
                worker.begun = time.monotonic()
                worker.job, worker.limit = job, worker.begun + job.timeout

    def _collect(self, deadline: float) -> Iterator[Reply]:
        """Wait for the next answer, death or timeout, and report what was about a job."""
        pause = min([deadline, *(w.limit for w in self._workers if w.job or not w.ready)]) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, min(pause, 1.0))):
            worker: Worker = key.data
            try:
                answer = read_frame(worker.process.stdout)  # type: ignore[arg-type]
            except EOFError:
                reply = self._bury(worker)
                if reply:
                    yield reply
                continue
            job, worker.job = worker.job, None
            if job is None:
                worker.ready = True
                continue
            worker.done += 1
            if worker.done >= self.recycle:
                self._remove(worker)
            took = time.monotonic() - worker.begun
            if "error" in answer:
                yield Reply(job, "error", message=answer["error"], seconds=took)
            else:
                yield Reply(job, "ok", answer["value"], seconds=took)
        now = time.monotonic()
        for worker in [w for w in self._workers if (w.job or not w.ready) and w.limit <= now]:
            job = worker.job
            if job is None:
                self._fail_start(worker, f"did not start within {START_SECONDS:.0f} s")
            self._remove(worker)
            assert job is not None
            yield Reply(job, "timeout", message=f"killed after {job.timeout:.1f} s", seconds=job.timeout)

    def _bury(self, worker: Worker) -> Reply | None:
        """Remove a worker that died; its job, if it had one, gets the blame."""
        worker.process.wait()
        job, code = worker.job, worker.process.returncode
        cause = f"signal {-code}" if code < 0 else f"exit status {code}"
        if not worker.ready:
            self._fail_start(worker, f"ended with {cause} while starting")
        words = worker.last_words()
        self._remove(worker)
        took = time.monotonic() - worker.begun
        return None if job is None else Reply(job, "crash", message=f"{cause}\n{words}".strip(), seconds=took)

    def _fail_start(self, worker: Worker, what: str) -> None:
        words = worker.last_words()
        self._remove(worker)
        raise BuildError(f"a tuning worker {what}; run 'tilegen doctor'. Its last words:\n{words}")

    def _start_one(self) -> None:
        log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **self.environment}
        command = [sys.executable, "-m", "tilegen.tune.worker", str(os.getpid())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
        )
        worker = Worker(process, log, time.monotonic() + START_SECONDS)
        write_frame(process.stdin, {"hide_torch": self.hide_torch, "calls": list(self.setup)})  # type: ignore[arg-type]
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        self._workers.append(worker)

    def _remove(self, worker: Worker) -> None:
        self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self._workers.remove(worker)
        worker.end()


def attend(pools: Sequence[Pool], seconds: float) -> None:
    """Wait at most `seconds` (and 1) until one of several pools may have replies for a `poll`."""
    with selectors.DefaultSelector() as waiting:
        for pool in pools:
            pool.hand_out()
            waiting.register(pool, selectors.EVENT_READ)
        waiting.select(max(0.0, min(seconds, 1.0)))
