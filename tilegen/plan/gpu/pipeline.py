"""Walks whose steps do nothing but add products of tiles of memory to states in registers: a matrix product, block by block.

::

    how many steps have something to add
    copies of the tiles of the first steps, one group each
    for every step:
        the group of this step is there; a barrier
        products
        copies of a later step's tiles, to where the step before read
    results

Shared memory holds the tiles of several steps, and all but one are on their way while tensor cores work: one step of products is
shorter than what memory takes to answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tilegen.expression.walkers import const_int
from tilegen.plan.gpu import copying
from tilegen.plan.idle import steps_with_work
from tilegen.plan.keep import keep

if TYPE_CHECKING:
    from tilegen.plan.gpu.tile import TileEmitter
    from tilegen.plan.tiles import TileKernel


def ordered(kernel: TileKernel, axes: list[int]) -> list[int]:
    """The axes of blocks, the fastest last: neighbours share the rows of the operand that is not known to be small."""
    return sorted(axes, key=lambda k: const_int(kernel.space[k]) is not None) if kernel.only_products() else axes


def mixed(block: TileEmitter, axes: list[int], number: Any, count: Any) -> Any:
    """The place of the block with a `number` among `count`: every other one is counted from the end.

    Where rows end before their buffer does, the first blocks multiply and the last ones write zeros.  Multiprocessors that have one
    of each are busy with both, and none has two that multiply while another has none.
    """
    if not block.kernel.only_products() or const_int(block.kernel.space[axes[0]]) is not None:
        return number
    half = tirx.truncdiv(number, 2)
    return block._let("place", keep(tirx.Select(tirx.truncmod(number, 2) == 0, half, count - 1 - half)), count)


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
        # Tensor cores begin at once, unless these copies are all that is under way meanwhile.
        if ahead == 1:
            fetch(step + ahead)
        block.outer[walked] = here
        for node in block._states():
            block._advance(node)
        if ahead > 1:
            fetch(step + ahead)
    block.outer[walked] = kernel.extent - 1
    for node in block.program.emits:
        block._either(node)


def lead(block: TileEmitter, walked: int) -> int:
    """How many steps before they are needed the tiles of any walk are copied: more than one where shared memory has room for them."""
    if block.arena.copies < 3:
        return 1
    block.outer[walked] = tirx.const(0, "int32")
    copied = any(block._is_copied(n) for n in block.program.steps if n.role == "load")
    # Steps with nothing to do have no group of copies that could be waited for.
    return block.arena.copies - 1 if copied and block._busy() is None else 1


def copy_ahead(block: TileEmitter, step: Any, index: Callable[[Any], Any]) -> None:
    """Start the copies of the tiles of a `step`, if there is such a step; those started before are a group of their own.

    Parameters
    ----------
    index : where on the walked axis a step is.
    """
    walked, extent = block.kernel.walked, block.kernel.extent
    assert walked is not None
    copying.group()
    block.outer[walked] = block._let("later", index(step), extent)
    with block.arena.ahead(step), block._if(step < extent):
        for node in block.program.steps:
            if node.role == "load" and block._is_copied(node):
                block._start_copies(node)
