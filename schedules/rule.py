"""What a schedule rule is, and how it asks for decisions.

A rule looks at one kernel's blocks, and either declines or tiles them.  Every size it chooses goes through `decide`, so
that the same code samples a search space (`Sampled`), uses its defaults, or repeats a recorded choice (`Fixed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import tvm_ffi
from tvm import s_tir
from tvm.ir.prim import expr as prim

from tilegen.errors import ScheduleError

INNER = "tilegen.inner"
"""Annotation of a block in a tile kernel: how many of its loops, counted from the innermost, lie inside the tile."""


ROWS = "tilegen.rows"
"""Annotation of a scatter-add's block: which of its loops counts the rows."""

UNORDERED = "tilegen.unordered"
"""Annotation of a scatter-add's block: whether no place gets two rows, so that any order and any thread will do."""

APART = "tilegen.apart"
"""Annotation of a scatter-add's block: whether neighbours along the last axis may have different places, which no vector takes."""


class Decide(Protocol):
    """``decide(name, candidates, default)`` gives one of `candidates`, as an int or as a sampled variable."""

    def __call__(self, name: str, candidates: Sequence[int], default: int) -> Any: ...


@dataclass
class Fixed:
    """Recorded decisions in the order in which the rule asks, else its defaults; `made` is what was used."""

    recorded: Sequence[int] = ()
    made: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, candidates: Sequence[int], default: int) -> int:
        value = int(self.recorded[len(self.made)]) if len(self.made) < len(self.recorded) else default
        if value not in candidates:
            raise ScheduleError(f"decision '{name}' is {value}, must be one of {list(candidates)}; tune this kernel again")
        self.made[name] = value
        return value


@dataclass
class Sampled:
    """Decisions as sampling instructions of a schedule: the search space of MetaSchedule.

    The default comes first among the candidates; `names` lists the decisions in the order of the trace.
    """

    sch: s_tir.Schedule
    names: list[str] = field(default_factory=list)

    def __call__(self, name: str, candidates: Sequence[int], default: int) -> Any:
        ordered = [default, *[c for c in candidates if c != default]]
        self.names.append(name)
        return self.sch.sample_categorical(ordered, [1.0 / len(ordered)] * len(ordered))


class Rule(Protocol):
    """One way to tile a pattern on a kind of machine.  `version` changes whenever old decisions would mean something else."""

    name: str
    version: int

    def fits(self, view: View) -> bool:
        """Whether the rule can schedule this kernel."""

    def apply(self, view: View, decide: Decide) -> None:
        """Schedule the kernel in place."""


@dataclass(frozen=True)
class Machine:
    """What rules may know of a CPU: cores, and bytes of its widest vector register and of its first-level data cache."""

    cores: int = 1
    vector_bytes: int = 32
    l1_bytes: int = 32 * 1024


@dataclass(frozen=True)
class Gpu:
    """What rules and lowerings may know of a GPU.

    Parameters
    ----------
    capability : compute capability times ten: 80, 90.
    processors : streaming multiprocessors.
    shared_bytes : shared memory that one block may use after opting in.
    shared_total : shared memory of one multiprocessor.
    registers : 32-bit registers of one multiprocessor.
    tf32 : whether tensor cores may multiply float32 operands, rounded to TF32.
    """

    capability: int = 90
    processors: int = 132
    shared_bytes: int = 232448
    shared_total: int = 233472
    registers: int = 65536
    tf32: bool = False


class DeviceRule(Protocol):
    """One way to run a pattern on a GPU: `decide` chooses the sizes by which the planner's lowering writes the kernel.

    `version` changes whenever old decisions would mean something else.
    """

    name: str
    version: int

    def fits(self, kernel: Any) -> bool:
        """Whether the rule can run this kernel of a plan."""

    def decide(self, kernel: Any, gpu: Gpu, decide: Decide) -> dict[str, Any]:
        """The decisions for this kernel, each through `decide`."""


@dataclass
class View:
    """One kernel inside a schedule: its blocks by role ("upd", "emit", "end")."""

    sch: s_tir.Schedule
    kernel: str
    machine: Machine

    def roles(self) -> set[str]:
        """The roles of the blocks that the kernel has."""
        prefix = f"{self.kernel}_"
        return {name[len(prefix) :] for name in block_names(self.sch.mod["main"]) if name.startswith(prefix)}

    def in_order(self) -> list[str]:
        """The roles of the kernel's blocks in program order."""
        prefix = f"{self.kernel}_"
        return [name[len(prefix) :] for name in block_names(self.sch.mod["main"]) if name.startswith(prefix)]

    def inner_loops(self, block: Any) -> list[Any]:
        """The loops of a tile kernel's block that lie inside the tile."""
        count = int(self.sch.get(block).annotations[INNER])
        loops = list(self.sch.get_loops(block))
        return loops[len(loops) - count :]

    def block(self, role: str) -> Any:
        """The block of a role."""
        return self.sch.get_sblock(f"{self.kernel}_{role}", func_name="main")

    def extent(self, loop: Any) -> int | None:
        """The extent of a loop if it is static."""
        extent = self.sch.get(loop).extent
        return int(extent.value) if isinstance(extent, prim.IntImm) else None

    def itemsize(self, block: Any) -> int:
        """Bytes of the widest element that a block writes."""
        return max(dtype_bytes(str(region.source.dtype)) for region in self.sch.get(block).writes)

    def reduced(self, block: Any) -> list[bool]:
        """For each loop around a block whether it is reduced over (block variables are bound to the loops in order)."""
        return [axis.iter_type == 2 for axis in self.sch.get(block).iter_vars]


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element: "float32" -> 4."""
    digits = "".join(c for c in dtype if c.isdigit())
    return max(1, int(digits or 8) // 8)


def block_names(func: Any) -> list[str]:
    """The names of all blocks of a function, in program order."""
    names: list[str] = []
    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, lambda block: names.append(block.name_hint)))
    return names


def divisors(n: int, candidates: Sequence[int]) -> list[int]:
    """Those of `candidates` that divide n."""
    return [c for c in candidates if n % c == 0]
