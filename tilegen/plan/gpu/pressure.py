"""How many registers a thread of a tile kernel needs at most: what decides how many blocks a multiprocessor can hold."""

from __future__ import annotations

from tvm import te

from tilegen.plan.gpu.func import WARP
from tilegen.plan.gpu.program import Node, Program
from tilegen.schedules.rule import Gpu

OTHER = 24
"""Registers for addresses, fragments of operands and conditions."""
WANTED = 3
"""Blocks of a multiprocessor that keep it busy: one loads, one computes, one waits."""
RESERVED = 1024
"""Bytes of shared memory that a block takes besides its own."""
ROOM, SPILLED = 72, 8
"""A kernel that needs this many registers less than there are for each block does not need to be told; one may spill some."""


def registers(program: Program) -> int:
    """An estimate of the registers of a thread at the nest that needs most of them, of 32-bit elements.

    What only contractions read, as left operands, waits in the narrow dtype; a stage that is computed from another element by element
    takes its place when nothing reads that one any more.
    """
    last: dict[te.Tensor, int] = {}
    wide: set[te.Tensor] = set()
    for node in program.steps:
        operands = [side.source for side in node.operands or ()]
        for source in [*[read.source for read in node.reads], *operands]:
            last[source] = max(last.get(source, 0), node.position)
        if not operands:
            wide |= {read.source for read in node.reads}
    most = 0
    for node in program.steps:
        live = [n for n in program.steps if n.position < node.position < last.get(n.tensor, -1)]
        taken = [n for n in program.steps if n.position < node.position == last.get(n.tensor, -1) and node.role == "reduce"]
        most = max(most, sum(_size(n, n.tensor in wide) for n in [*live, *taken, node]))
    return most + OTHER


def _size(node: Node, wide: bool) -> int:
    """The registers that hold a stage."""
    if node.layout is None or node.way == "flat" or node.role in ("emit", "load"):
        return 0
    size = node.layout.row_size if node.way in ("rows", "rowstat") else node.layout.size
    return size if wide or node.way != "fragment" else size // 2


def resident(program: Program, gpu: Gpu, nbytes: int) -> int:
    """The blocks that a multiprocessor should hold at the price of a few spilled registers; 1 where the compiler's choice is as good.

    Left alone the compiler takes all registers that there are, and two blocks of four warps wait for each other's loads and barriers.
    """
    threads, limit = program.warps * WARP, gpu.registers // (WANTED * program.warps * WARP)
    fits = WANTED * (nbytes + RESERVED) <= gpu.shared_total and program.narrow is not None and threads <= gpu.registers // WANTED
    return WANTED if fits and limit - ROOM <= registers(program) <= limit + SPILLED else 1
