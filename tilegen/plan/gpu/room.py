"""Room in memory for tiles that a block cannot hold in shared memory: slow, never broken.

A kernel of tiles too large for a GPU (those of float32 tensors with wide heads, on a card with little shared memory) keeps the largest of
them in a workspace instead, a piece of it for every block.  The nests and their barriers stay as they are; tensor cores, copies
past the registers and loads ahead need shared memory and are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tilegen.expression import placeholder
from tilegen.expression.walkers import const_int
from tilegen.plan.gpu.block import Block, TooLarge, homes_of
from tilegen.plan.gpu.program import Program
from tilegen.plan.gpu.shared import Shared, place
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan, PlanArg
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import Fixed, Gpu, dtype_bytes

WARPS = 8
"""Of a block: tiles so large take many registers."""


def roomed(function: FunctionPlan, gpu: Gpu) -> FunctionPlan:
    """`function` with workspace for kernels whose blocks, by the default decisions of their rules, need more than `gpu` has."""
    kernels: list[Kernel] = []
    args = list(function.args)
    for kernel in function.kernels:
        if isinstance(kernel, TileKernel) and not fits(kernel, function, gpu):
            words = place(list(homes_of(Program(kernel, kernel.memory, WARPS, None)).values())) // 4
            tensor = placeholder([_blocks(kernel), words], "float32", f"{kernel.name}_room")
            args.append(PlanArg(f"workspace_{kernel.name}_room", "workspace", tensor))
            kernel = dataclasses.replace(kernel, room=tensor)
        kernels.append(kernel)
    return dataclasses.replace(function, args=args, kernels=kernels)


DECISIONS: Mapping[str, int] = {"warps": WARPS, "parts": 1, "prefetch": 0}
"""How a kernel with a room runs: one launch whose blocks compute whole results, nothing fetched ahead."""


def fits(kernel: TileKernel, function: FunctionPlan, gpu: Gpu) -> bool:
    """Whether the blocks of a kernel, by the default decisions of its rule, have room in shared memory."""
    from tilegen.schedules.registry import device_rule_for

    decisions = device_rule_for(kernel, "cuda").decide(kernel, gpu, Fixed())
    buffers: dict[te.Tensor, Any] = dict.fromkeys(arg.tensor for arg in function.args)
    try:
        for one in kernel.apart() if decisions.get("apart") else [kernel]:
            Block(one, buffers, decisions, gpu, lambda expr, bind: expr)
    except TooLarge:
        return False
    return True


def _blocks(kernel: TileKernel) -> Any:
    return math.prod(n for k, n in enumerate(kernel.space) if k != kernel.walked and const_int(n) != 1)


def open_room(buffer: Any, homes: Sequence[Shared], block: Any) -> None:
    """Declare `homes` in the block's own piece of a room."""
    blocks, words = buffer.shape
    for home in homes:
        width = dtype_bytes(home.dtype)
        piece = int(const_int(words)) * 4 // width
        home.buffer = T.decl_buffer([blocks * piece], home.dtype, data=buffer.data)
        IRBuilder.name(home.name, home.buffer)
        # A room may have more than 2^31 elements whatever the tensors have.
        home.shift = block.astype("int64") * piece + home.offset // width
