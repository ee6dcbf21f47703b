"""The devices that a search measures on, each by a process of its own, and what to make of a process that dies.

A candidate that crashes or hangs is to blame as long as nothing is known against the device.  With several devices that can be found
out: what died is set aside until the same device has run something that is known to work.  If that dies as well, the device is left
out, and what was set aside is measured by another one: a device that broke, or whose memory somebody else took, refuses no candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tilegen.errors import BuildError
from tilegen.tune.journal import OK, Outcome
from tilegen.tune.local import Workshop, summary
from tilegen.tune.pool import Job, Pool, Reply, attend

PROOFS = 2
"""Times that a device may fail at what is known to work."""

SLOWER = 0.8
"""Part of the fastest device's bandwidth below which a device is left out: something else runs there."""


@dataclass(eq=False)
class Meter:
    """A device, and its process.

    Attributes
    ----------
    trials : candidates that it measured.
    doubt : what died there last, while it is not known whose fault that was.
    failures : times that what is known to work died there, too.
    """

    name: str
    pool: Pool
    trials: int = 0
    doubt: Reply | None = None
    failures: int = 0

    def restart(self) -> None:
        """Begin anew: what is rejected may have written anywhere on the device, and after an illegal access nothing works any more."""
        self.pool.discard()
        self.pool.start()


class Meters:
    """The devices of a call.

    Parameters
    ----------
    say : told when a device is left out.

    Attributes
    ----------
    live : those that are measured on.
    again : jobs that a device was left out with.
    """

    def __init__(self, workshop: Workshop, say: Callable[[str], None]) -> None:
        self.workshop, self.say = workshop, say
        self._all = [Meter(name, pool) for name, pool in workshop.meters.items()]
        self.live = list(self._all)
        self.again: deque[Job] = deque()

    def begin(self) -> float:
        """Have all devices copy memory, and leave out those that cannot, or much slower than others; bytes per second of the first.

        Raises
        ------
        BuildError
            When no device can.
        """
        job = Job(self.workshop.backend.copy_bandwidth, {}, self.workshop.limits.whole)
        for meter in self.live:
            meter.pool.submit(job)
        found: dict[Meter, float] = {}
        while busy := [meter for meter in self.live if meter.pool.load]:
            attend([meter.pool for meter in busy], 1.0)
            for meter in busy:
                for reply in self._poll(meter):
                    if reply.kind == OK:
                        found[meter] = float(reply.value)
                    else:
                        self._leave_out(meter, reply.message)
        best = max(found.values())
        for meter in [m for m in self.live if found[m] < SLOWER * best]:
            self._leave_out(meter, f"it copies {found[meter] / best:.0%} of what the fastest does; is it in use?")
        return found[self.live[0]]

    @property
    def load(self) -> bool:
        """Whether something is being measured, or left over from a device."""
        return bool(self.again) or any(meter.pool.load for meter in self.live)

    def idle(self) -> list[Meter]:
        """The devices that can be given a job."""
        return [meter for meter in self.live if not meter.pool.load and meter.doubt is None]

    def replies(self) -> list[Reply]:
        """What came, without what is set aside."""
        found: list[Reply] = []
        for meter in list(self.live):
            for reply in self._poll(meter):
                found += self._judge(meter, reply)
        return found

    def prove(self, known: Callable[[Job], Job | None]) -> list[Reply]:
        """Give each device in doubt something to prove itself by; what is believed, since there is no device left that could tell.

        `known` : by what died a job that must not die, if there is one yet.
        """
        if len(self.live) > 1:
            for meter in self.live:
                if meter.doubt is not None and not meter.pool.load and (job := known(meter.doubt.job)) is not None:
                    meter.pool.submit(job)
        told = any(meter.doubt is None or meter.pool.load for meter in self.live)
        return [] if told else self.settle()

    def settle(self) -> list[Reply]:
        """Believe all that is set aside and not being looked into."""
        return [reply for meter in self.live if not meter.pool.load for reply in self._believe(meter)]

    def trials(self) -> dict[str, int]:
        """Candidates that each device measured."""
        return {meter.name: meter.trials for meter in self._all}

    def drop(self) -> None:
        """End what is being measured."""
        for meter in self.live:
            meter.pool.drop()

    def _poll(self, meter: Meter) -> list[Reply]:
        try:
            return meter.pool.poll(0.0)
        except BuildError as error:  # its process does not start
            self._leave_out(meter, str(error))
            return []

    def _judge(self, meter: Meter, reply: Reply) -> list[Reply]:
        rejected = isinstance(reply.value, dict) and reply.value["kind"] != OK
        if reply.kind != OK or rejected:
            meter.restart()
        if reply.job.tag is None:  # a proof
            if reply.kind == OK:
                return self._believe(meter)
            meter.failures += 1
            if meter.failures >= PROOFS:
                self._leave_out(meter, reply.message)
            return []
        previous, meter.doubt = meter.doubt, reply
        assert previous is None
        return [] if reply.kind != OK and len(self.live) > 1 else self._believe(meter)

    def _believe(self, meter: Meter) -> list[Reply]:
        reply, meter.doubt, meter.failures = meter.doubt, None, 0
        if reply is None:
            return []
        meter.trials += reply.job.call == self.workshop.backend.measure
        return [reply]

    def _leave_out(self, meter: Meter, why: str) -> None:
        """Go on without a device.

        Raises
        ------
        BuildError
            When it is the last one.
        """
        if self.live == [meter]:
            raise BuildError(f"{meter.name} cannot be measured on: {why}")
        self.live.remove(meter)
        left = [*meter.pool.withdraw(), *([meter.doubt.job] if meter.doubt else [])]
        self.again.extend(job for job in left if job.tag is not None)
        meter.pool.discard()
        lines = why.strip().splitlines() or ["no reason known"]
        brief = lines[-1] if "Traceback" in why else lines[0]
        self.say(f"{meter.name} is left out: {brief.strip()}; the search goes on with {', '.join(m.name for m in self.live)}")


def outcome_of(reply: Reply) -> Outcome:
    """What became of a candidate that was measured."""
    if reply.kind != OK:
        return Outcome("crash" if reply.kind == "error" else reply.kind, message=f"while measuring: {reply.message}")
    if reply.value["kind"] != OK:
        return Outcome(reply.value["kind"], message=reply.value["message"])
    return Outcome(OK, *summary(reply.value["samples"]))
