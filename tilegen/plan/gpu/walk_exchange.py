"""How the groups of a walk's steps learn the states in which they start: a scan over groups in shared memory.

Every group writes what it adds to a state and how much of the state before it passes on; after a barrier a thread per scan and
channel runs over the groups in order, carries the state from one round of groups to the next in a register, and leaves in place
of every group's sum the state in which that group starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.scan import scan_spec
from tilegen.plan.gpu.func import WARP, barrier
from tilegen.plan.gpu.lanes import registers
from tilegen.plan.gpu.walk_strata import Decay, Stratum, decay_of
from tilegen.plan.gpu.walk_values import resumed

BATCH = 8
"""Groups whose sums a scanning thread reads ahead of combining them."""


Marker = Callable[[Any, Any, Any, Any], None]
"""Told of every state before a group, where it is known: (number of its scan, group, channel of the block, value)."""


@dataclass(frozen=True)
class Shape:
    """How threads share a tile: `groups` of consecutive steps, `channels`, of which a thread owns `width`."""

    groups: int
    channels: int
    width: int
    steps: int

    @property
    def lanes(self) -> int:
        """Threads of one group."""
        return self.channels // self.width

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return self.lanes * self.groups

    @property
    def span(self) -> int:
        """Steps of one round."""
        return self.groups * self.steps

    @property
    def row(self) -> int:
        """Elements between the rows of two states; rows narrower than the banks are shifted against each other."""
        return self.groups * self.channels + (self.channels if self.channels < WARP else 0)


@dataclass
class Section:
    """Neighbouring scans of a stratum that are combined in the same way.

    Parameters
    ----------
    row : of the first scan's sums in shared memory; the others follow.
    decay_row : of what the groups pass on, where it differs from group to group.
    offset : the first of the threads that scan.
    number : of the first scan among all scans of the walk, stratum by stratum.
    carry, factor : registers of a scanning thread: its states, and what a group passes on where that never changes.
    ahead : its states in the next round, where they are loaded.
    """

    scans: list[te.Tensor]
    decay: Decay | None
    row: int
    decay_row: int | None = None
    offset: int = 0
    number: int = 0
    carry: Any = None
    factor: Any = None
    ahead: Any = None

    @property
    def dtype(self) -> str:
        """Of the states."""
        return str(self.scans[0].dtype)


@dataclass
class Exchange:
    """The scans over groups of one stratum; `falling`: from the last group to the first.  `number` is that of its first scan."""

    stratum: Stratum
    shape: Shape
    falling: bool = False
    number: int = 0
    sections: list[Section] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay out rows in shared memory, and threads."""
        kind: Any = None
        for number, scan in enumerate(self.stratum.scans, self.number):
            decay, dtype = decay_of(scan), str(scan.dtype)
            mine = (scan_spec(scan.op).kind, dtype, "steady" if decay is not None and decay.steady else decay)
            if mine != kind:
                self.sections.append(Section([], decay, 0, number=number))
                kind = mine
            self.sections[-1].scans.append(scan)
        taken = 0
        for section in self.sections:
            section.row = self._take(section.dtype, len(section.scans))
            if section.decay is not None and not section.decay.steady:
                section.decay_row = self._take(section.dtype, 1)
            columns = len(section.scans) * self.shape.channels
            section.offset = taken if taken + columns <= self.shape.threads else 0
            taken = section.offset + -(-columns // WARP) * WARP

    def _take(self, dtype: str, count: int) -> int:
        first = self.rows.get(dtype, 0)
        self.rows[dtype] = first + count
        return first

    def open(self) -> None:
        """Declare the registers of the scanning threads."""
        for k, section in enumerate(self.sections):
            rounds = len(self._rounds(section))
            section.carry = registers(f"carry{k}", [rounds], section.dtype)
            if section.decay is not None and section.decay.steady:
                section.factor = registers(f"factor{k}", [rounds], section.dtype)

    def row_of(self, scan: te.Tensor) -> int:
        """The row of a scan's sums."""
        section = next(s for s in self.sections if scan in s.scans)
        return section.row + section.scans.index(scan)

    def decays(self) -> list[Section]:
        """Sections whose groups tell how much they pass on."""
        return [section for section in self.sections if section.decay_row is not None]

    def _rounds(self, section: Section) -> range:
        return range(-(-len(section.scans) * self.shape.channels // self.shape.threads))

    @contextmanager
    def _column(self, section: Section, turn: int, thread: Any) -> Iterator[tuple[Any, Any]]:
        """Inside, a thread has a scan and channel of its own: (row of its sums, element of the row's first group)."""
        columns, threads, channels = len(section.scans) * self.shape.channels, self.shape.threads, self.shape.channels
        first = turn * threads - section.offset
        at = thread + first if first else thread
        conditions = [*([at >= 0] if first < 0 else []), *([at < columns] if first + threads > columns else [])]
        with ExitStack() as stack:
            if conditions:
                stack.enter_context(T.If(tirx.all(*conditions)))
                stack.enter_context(T.Then())
            at = T.Bind(at)
            yield section.row + tirx.floordiv(at, channels), tirx.floormod(at, channels)

    def each(self, thread: Any, sections: Sequence[Section], body: Callable[[Section, int, Any, Any], None]) -> None:
        """``body(section, turn, row, channel)`` for every column of a thread."""
        for section in sections:
            for turn in self._rounds(section):
                with self._column(section, turn, thread) as (row, channel):
                    body(section, turn, row, channel)

    def run(self, thread: Any, sums: dict[str, Any], mark: Marker | None = None) -> None:
        """Replace the groups' sums by the states in which they start."""
        barrier()
        self.each(
            thread,
            self.sections,
            lambda section, turn, row, channel: self._scan(section, turn, row, channel, sums[section.dtype], mark),
        )
        barrier()

    def _scan(self, section: Section, turn: int, row: Any, channel: Any, sums: Any, mark: Marker | None) -> None:
        """One column, group after group."""
        shape, scan = self.shape, section.scans[0]
        batch = min(BATCH, shape.groups)
        local = registers("local", [batch], section.dtype)
        passed = registers("passed", [batch], section.dtype) if section.decay_row is not None else None
        state = registers("state", [1], section.dtype)
        T.buffer_store(state, section.carry[turn], [0])
        with T.unroll(0, shape.groups // batch) as part:
            with T.unroll(0, batch) as k:
                at = self._group(part * batch + k) * shape.channels + channel
                T.buffer_store(local, sums[row, at], [k])
                if passed is not None:
                    T.buffer_store(passed, sums[section.decay_row, at], [k])
            with T.unroll(0, batch) as k:
                factor = passed[k] if passed is not None else section.factor[turn] if section.factor is not None else None
                group = self._group(part * batch + k)
                T.buffer_store(sums, state[0], [row, group * shape.channels + channel])
                if mark is not None:
                    mark(section.number + (row - section.row), group, channel, state[0])
                T.buffer_store(state, resumed(scan, state[0], local[k], factor), [0])
        T.buffer_store(section.carry, state[0], [turn])

    def _group(self, turn: Any) -> Any:
        return self.shape.groups - 1 - turn if self.falling else turn


def exchanges(strata: Sequence[Stratum], shape: Shape, falling: bool = False) -> list[Exchange]:
    """The exchanges of all strata, lowest first."""
    found: list[Exchange] = []
    number = 0
    for stratum in strata:
        found.append(Exchange(stratum, shape, falling, number))
        number += len(stratum.scans)
    return found
