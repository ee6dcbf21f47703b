"""Walks whose steps do nothing but add products of tiles of memory to states in registers: a matrix product, block by block.

::

    how many steps have something to add
    copies of the tiles of the first steps, one group each
    for every step:
        the group of this step is there; a barrier
        copies of a later step's tiles, to where the step before read
        products
    results

Shared memory holds the tiles of several steps, and all but one are on their way while tensor cores work: one step of products is
shorter than what memory takes to answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tilegen.plan.gpu import copying
from tilegen.plan.idle import steps_with_work
from tilegen.plan.keep import keep

if TYPE_CHECKING:
    from tilegen.plan.gpu.tile import TileEmitter


def fits(block: TileEmitter) -> bool:
    """Whether all that a step does is to copy its tiles and to multiply them."""
    kernel, steps = block.kernel, block.program.steps
    if not kernel.only_products() or kernel.reverse or block.arena.copies < 2 or not block.past_registers:
        return False
    if any(n.role not in ("load", "state", "emit") or (n.role == "state" and n.operands is None) for n in steps):
        return False
    block.outer[kernel.walked] = tirx.const(0, "int32")
    return all(block._is_copied(n) for n in steps if n.role == "load")


def walk(block: TileEmitter, walked: int) -> None:
    """The walk, and the results after its last step."""
    kernel, arena = block.kernel, block.arena
    loads, ahead = [n for n in block.program.steps if n.role == "load"], arena.copies - 1
    first: Any = tirx.const(0, "int32")
    found = steps_with_work(kernel, list(block.outer))
    count = kernel.extent
    if found is not None:
        count = block._let("count", keep(block._values_at([], inline=True).resolved(found)), kernel.extent + 1)

    def fetch(step: Any) -> None:
        block.outer[walked] = block._let("next", step, kernel.extent)
        with arena.ahead(step), block._if(step < count):
            for node in loads:
                block._start_copies(node)
        copying.group()

    for early in range(ahead):
        fetch(first + early)
    with T.serial(0, count) as step:
        here = block._let("step", step, kernel.extent)
        arena.turn(step)
        copying.wait(ahead - 1)
        arena.meet()
        fetch(step + ahead)
        block.outer[walked] = here
        for node in block._states():
            block._advance(node)
    block.outer[walked] = kernel.extent - 1
    for node in block.program.emits:
        block._either(node)
