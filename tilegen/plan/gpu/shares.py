"""Tile kernels for any number of walks: results shared out over blocks where walks are few, a block a walk where they are many."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from tilegen.plan.evaluate import MathRule
from tilegen.plan.gpu.func import Buffers, Decisions
from tilegen.plan.gpu.lanes import product
from tilegen.plan.gpu.room import DECISIONS
from tilegen.plan.gpu.tile import TileEmitter
from tilegen.plan.kernel import Kernel
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import Gpu


def lower_shares(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Emit a tile kernel, or one for few walks and one for many, of which the host launches that which suits the sizes.

    Decisions: those of `lower_tile`, and `whole`: from so many walks on nothing is shared out or computed apart, and a block has
    `whole_warps`, `whole_prefetch` and `whole_stages` (0: never).
    """
    assert isinstance(kernel, TileKernel)
    whole = decisions.get("whole", 0) if kernel.room is None else 0
    if not whole:
        lower_tile(kernel, buffers, decisions, gpu, math)
        return
    walks = product([n for k, n in enumerate(kernel.space) if k != kernel.walked])
    with T.If(walks < whole):
        with T.Then():
            lower_tile(kernel, buffers, decisions, gpu, math)
        with T.Else():
            alone = {"parts": 1, "apart": 0, "warps": decisions["whole_warps"], "prefetch": decisions["whole_prefetch"]}
            alone["stages"] = decisions["whole_stages"]
            lower_tile(kernel, buffers, {**decisions, **alone}, gpu, math)


def lower_tile(kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule) -> None:
    """Emit a tile kernel.

    Decisions: `warps` of a block, `parts` in which blocks share out an axis of the results, `prefetch` in a walk (1: to registers; 2: to
    shared memory where a tile is copied as it is) and `stages` (steps of which shared memory holds tiles), `apart` (0 or 1) for a
    launch for every result; of products besides `across` (warps along columns), `resident` (blocks of a multiprocessor).
    """
    assert isinstance(kernel, TileKernel)
    decisions = decisions if kernel.room is None else DECISIONS
    for one in kernel.apart() if decisions.get("apart") else [kernel]:
        TileEmitter(one, buffers, decisions, gpu, math).emit()
