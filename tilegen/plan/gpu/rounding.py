"""Which kernels of a plan multiply float32 operands on tensor cores, where the caller allows their rounding to TF32."""

from __future__ import annotations

import dataclasses

from tilegen.plan.gpu.block import narrow_dtype
from tilegen.plan.gpu.program import Program
from tilegen.plan.gpu.room import fits
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan
from tilegen.plan.tiles import TileKernel
from tilegen.schedules.rule import Gpu


def allowed(function: FunctionPlan, gpu: Gpu) -> FunctionPlan:
    """`function` in which tile kernels with products of float32 stages round their operands to TF32.

    Kernels whose tiles have room in the shared memory of `gpu` only as threads lay them out stay as they are.
    """
    return dataclasses.replace(function, kernels=[_rounded(kernel, function, gpu) for kernel in function.kernels])


def _rounded(kernel: Kernel, function: FunctionPlan, gpu: Gpu) -> Kernel:
    if not isinstance(kernel, TileKernel) or narrow_dtype([arg.tensor for arg in function.args]) is not None:
        return kernel
    products = [node for node in Program(kernel, kernel.memory, 1, None).steps if node.operands is not None]
    if not products or any(str(node.tensor.dtype) != "float32" for node in products):
        return kernel
    made = dataclasses.replace(kernel, tf32=True)
    return made if fits(made, function, gpu) else kernel
