"""``tilegen tune`` as a function: operators in, records and a report out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tilegen import mechanisms, settings
from tilegen.build import gpus
from tilegen.build.target import BuildTarget, resolve
from tilegen.bundle import gpu, machine
from tilegen.errors import ArgumentError, TargetError, TilegenError
from tilegen.mechanisms import Instance
from tilegen.tune import engine, planned, remote
from tilegen.tune.local import BACKENDS, Workshop
from tilegen.tune.progress import Progress
from tilegen.tune.report import TIME_UP, SearchResult, TuneReport
from tilegen.tune.session import search
from tilegen.tune.task import Task


def tune(
    ops: Sequence[str | Instance],
    *,
    shapes: Mapping[str, int] | None = None,
    minutes: float | None = None,
    trials: int | None = None,
    effort: str = "default",
    target: str | None = None,
    resume: bool = True,
    log_dir: Path | None = None,
    seed: int = 0,
    functions: Sequence[str] = planned.FUNCTIONS,
    devices: str | Sequence[int] | None = None,
    rpc: str | None = None,
    key: str = "",
    progress: Progress | None = None,
    tf32: bool = False,
) -> TuneReport:
    """Search the kernels of operators on this machine and record the winners.

    Interrupt it at any time: the same call goes on where it was.

    Parameters
    ----------
    ops : names of operators (then with their default options, float32), or instances.
    shapes : sizes by name that replace the operators' representative ones; static ones too when `ops` are names.
    minutes : for the whole call, planning and final ranking included.
    trials : per kernel, over all calls.
    effort : "quick", "default" or "max": both limits when neither is given; the size of a batch in any case.
    target : None: this machine's GPU, else its CPU; "cpu"; "cuda", "cuda:1"; another machine's name only with `rpc`, since kernels
        must be run to be measured; this CPU runs the code of lesser ones ("x86-64-v3" on one with AVX-512).
    resume : go on with the trials of earlier calls; False sets them aside.
    log_dir : where records and trials go; `tilegen.settings.log_dir()` unless given.
    functions : which of "forward", "backward" and, on a GPU, "step", which is measured with 64 sequences of one position.
    devices : for target "cuda": "all", or the numbers of several GPUs of one model ("0,1,3"), which measure at the same time; one alone
        unless given, since others may be in use.
    rpc, key : ``HOST:PORT`` of a TVM RPC tracker and the name under which servers registered there: measure on one of these.
        An RPC server runs whatever it is sent; off unless given.
    progress : where to show what happens; standard error unless given.
    tf32 : for a GPU: tune float32 operators as they are where torch allows products in TF32; their records are others.

    Returns
    -------
    TuneReport
        Its `lines()` are what the command prints.

    Raises
    ------
    ArgumentError
        An unknown operator, size, effort or limit.
    TargetError
        Another machine's target.
    ScheduleError
        No kernel has a valid candidate; the first rejection is in the message in full.
    RecordError
        Another process tunes the same kernel.
    """
    begun = time.monotonic()
    limits = engine.effort(effort, trials, minutes)
    deadline = begun + 60 * limits.minutes
    if not ops:
        raise ArgumentError(f"ops is empty, must name at least one of {', '.join(mechanisms.names())}")
    instances = [_instance(op, shapes or {}) for op in ops]
    place = remote.environment(rpc, key) if rpc is not None else {}
    numbers = devices_of("rpc" if place else target, devices)
    if devices is not None:
        target = f"cuda:{numbers[0]}"
    chosen = own_target(target, tf32) if rpc is None else resolve(target, tf32=tf32)
    if chosen.kind == "cuda":
        if place:
            raise ArgumentError(
                f"rpc is given with target {target!r}; servers measure kernels for CPUs only: tune on the machine that has the GPU, one call "
                "for each of several GPUs (--target cuda:0, --target cuda:1) with other operators, and merge with `tilegen logs merge`"
            )
        from tilegen.tune.device.run import tune_device

        instances = [one for one in instances if not one.mechanism.host]
        if not instances:
            raise ArgumentError(f"ops are for CPUs only, the target is {chosen.device}; name one that has kernels for GPUs")
        _check(instances, shapes or {})
        with progress or Progress() as show, _telling(show):
            return tune_device(
                instances,
                chosen,
                devices=numbers,
                shapes=shapes or {},
                functions=functions,
                effort=limits,
                deadline=deadline,
                log_dir=log_dir or settings.log_dir(),
                resume=resume,
                seed=seed,
                progress=show,
            )
    if unknown := set(functions) - {*planned.FUNCTIONS}:
        raise ArgumentError(
            f"functions has {', '.join(sorted(unknown))}, must be of {', '.join(planned.FUNCTIONS)}; a step is tuned on GPUs only: on "
            "a CPU it takes microseconds whatever its tiles"
        )
    backend, places = (remote.backend(), {key: place}) if place else (None, None)
    results: list[SearchResult] = []
    skipped: list[tuple[str, str]] = []
    failed: list[TilegenError] = []
    with progress or Progress() as show, _telling(show), Workshop(chosen.tvm, backend=backend, places=places) as workshop:
        show.stage("planning")
        work = _tasks(instances, chosen, shapes or {}, functions, skipped)
        bandwidth = workshop.bandwidth()
        for position, task in enumerate(work):
            now = time.monotonic()
            if now >= deadline:
                skipped.append((task.name, TIME_UP))
                continue
            # What one kernel leaves of its share goes to those after it.
            share = now + (deadline - now) / (len(work) - position)
            try:
                result = search(task, workshop, limits, deadline=share, log_dir=log_dir, resume=resume, seed=seed, progress=show)
            except TilegenError as error:  # one kernel does not keep the others waiting
                failed.append(error)
                skipped.append((task.name, str(error)))
                continue
            if result is None:
                skipped.append((task.name, TIME_UP))
                continue
            results.append(result)
            show.say(result.lines()[0])
    if failed and not results:
        raise failed[0]
    return TuneReport(results, time.monotonic() - begun, skipped, chosen.device, bandwidth)


def own_target(name: str | None, tf32: bool = False) -> BuildTarget:
    """The target of this machine, if `name` is that.

    Raises
    ------
    TargetError
        When kernels for it cannot be measured here.
    """
    if name is None:
        name = "cuda" if _has_gpu() else "cpu"
    chosen = resolve(name, tf32=tf32)
    if chosen.kind == "cuda" and name.partition(":")[0] == "cuda":
        return chosen
    own = resolve(None)
    if chosen.device != own.device and not _runs_here(chosen):
        raise TargetError(
            f"target is {name!r}, this machine is {own.device}; tuning runs the kernels, so tune on such a machine and bring its "
            "log here with `tilegen logs merge`"
        )
    if chosen.kind not in BACKENDS:
        raise TargetError(
            f"target is {name!r} of kind {chosen.kind}, must be of a kind that can be measured: {', '.join(BACKENDS)}"
        )
    return chosen


def _runs_here(target: BuildTarget) -> bool:
    """Whether this CPU has all instruction sets of another one: its records can be made here too."""
    same = target.kind == "llvm" and target.description["arch"] == machine.arch()
    return same and set(target.description["features"]) <= machine.flags()


def _instance(op: str | Instance, shapes: Mapping[str, int]) -> Instance:
    if isinstance(op, Instance):
        return op
    found = mechanisms.get(op)
    static = {name: shapes.get(name, found.representative[name]) for name in found.static}
    return Instance(found, found.config(), static, "float32")


def _has_gpu() -> bool:
    """Whether kernels for a GPU can be run here."""
    if not gpu.installed():
        return False
    try:
        return bool(gpu.driver().handles) and gpus.of_device() is not None
    except TargetError:
        return False


def devices_of(target: str | None, given: str | Sequence[int] | None) -> list[int]:
    """The numbers of the GPUs to measure on: that of `target`, "cuda:1", unless others are `given`, "all" or "0,1,3".

    Raises
    ------
    ArgumentError
        When what is given is no list of different numbers, or `target` names one of them or no GPU of this machine.
    TargetError
        When there is no such GPU, or they are not all of one model: what is fastest on one need not be on another.
    """
    kind, _, number = (target or "cuda").partition(":")
    if given is None:
        return [int(number) if number.isdecimal() else 0]
    shown = given if isinstance(given, str) else ",".join(map(str, given))
    if kind != "cuda":
        what = "rpc" if kind == "rpc" else f"target {target!r}"
        raise ArgumentError(f"devices is {shown!r} with {what}, must be left out: it numbers GPUs of this machine")
    if number:
        raise ArgumentError(f"devices is {shown!r} and target {target!r}, must not both number devices; say --target cuda")
    count = len(gpu.driver().handles)
    parts = [str(n) for n in range(count)] if shown.strip() == "all" else [part.strip() for part in shown.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentError(f"devices is {shown!r}, must be 'all' or numbers of GPUs such as 0,1,3")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise ArgumentError(f"devices is {shown!r}, must name each GPU once")
    if unknown := [n for n in numbers if n >= count]:
        raise TargetError(f"devices is {shown!r}, there is no GPU {unknown[0]}; the driver sees {count}, numbered from 0")
    cards = {n: gpus.of_device(n) for n in numbers}
    if other := [n for n, card in cards.items() if card != cards[numbers[0]]]:
        raise TargetError(
            f"devices is {shown!r}, must be GPUs of one model: GPU {numbers[0]} is {_model(cards[numbers[0]])}, GPU {other[0]} "
            f"{_model(cards[other[0]])}; tune each model by a call of its own, their records are kept apart"
        )
    return numbers


def _model(card: gpus.Card) -> str:
    return f"{card.name} ({card.arch}, {card.processors} multiprocessors)"


def _check(instances: Sequence[Instance], shapes: Mapping[str, int]) -> None:
    """Refuse sizes that no instance has."""
    known = {name for instance in instances for name in (*instance.symbolic, *instance.static)}
    for name, size in shapes.items():
        if name not in known or size < 1:
            raise ArgumentError(f"shapes has {name}={size}, must give sizes of at least 1 to {', '.join(sorted(known))}")


def _tasks(
    instances: Sequence[Instance],
    target: BuildTarget,
    shapes: Mapping[str, int],
    functions: Sequence[str],
    skipped: list[tuple[str, str]],
) -> list[Task]:
    """The kernels to search.  Among several operators one that cannot be planned does not keep the others waiting."""
    _check(instances, shapes)
    found = []
    for instance in instances:
        try:
            found += planned.tasks(instance, target, shapes, functions)
        except TilegenError as error:
            if len(instances) == 1:
                raise
            skipped.append((instance.mechanism.name, str(error)))
    return found


@contextlib.contextmanager
def _telling(show: Progress) -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        show.say("interrupted; all finished trials are kept, the same command goes on from here")
        raise
