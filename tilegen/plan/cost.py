"""What a kernel costs by a stated model: bytes it moves, operations it does, seconds on a machine of given rates."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tvm import te

from tilegen.expression.scan import scan_spec
from tilegen.expression.walkers import call_name, dtype_of, find, prim, size_estimate
from tilegen.plan import stages
from tilegen.plan.kernel import Kernel

ARITHMETIC = (prim.Add, prim.Sub, prim.Mul, prim.Div, prim.Max, prim.Min)
FUNCTION_FLOPS = 10
"""Operations that a transcendental function counts as."""


@dataclass(frozen=True)
class Balance:
    """Rates of a machine as the planner sees them: bytes and operations a second.

    Only their ratio matters for its choices; the default is that of a few CPU cores with vector units.
    """

    bytes_per_second: float = 2.0e10
    flops_per_second: float = 1.0e11


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, and floating-point operations, at estimated symbolic sizes."""

    bytes: int
    flops: int

    def seconds(self, balance: Balance) -> float:
        """Time if memory and arithmetic overlap perfectly."""
        return max(self.bytes / balance.bytes_per_second, self.flops / balance.flops_per_second)


def sources(kernel: Kernel, ready: Collection[te.Tensor]) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """(tensors a kernel reads from memory, stages it computes), `ready` being all that is in memory when it runs."""
    read: list[te.Tensor] = []
    computed: list[te.Tensor] = []
    seen: set[te.Tensor] = set()
    own = {*kernel.anchors, *kernel.writes(), *getattr(kernel, "locals", ())}  # computed here even if memory has them
    stack = list(reversed([*kernel.anchors, *kernel.writes()]))
    while stack:
        tensor = stack.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in ready and tensor not in own:
            read.append(tensor)
            continue
        computed.append(tensor)
        stack += [source for source, _ in reversed(stages.reads(tensor))]
    return read, computed


def kernel_cost(kernel: Kernel, ready: Collection[te.Tensor]) -> Cost:
    """The cost of one kernel when `ready` is in memory."""
    read, computed = sources(kernel, ready)
    moved = sum(nbytes(tensor) for tensor in [*read, *kernel.writes()])
    return Cost(moved, sum(stage_flops(tensor) for tensor in computed))


def total(costs: Iterable[Cost], balance: Balance) -> float:
    """Seconds of kernels that run one after another."""
    return sum(cost.seconds(balance) for cost in costs)


def nbytes(tensor: te.Tensor) -> int:
    """Bytes of a tensor, symbolic sizes estimated."""
    return size_estimate(tensor.shape) * stages.element_bytes(tensor)


def stage_flops(tensor: te.Tensor) -> int:
    """Floating-point operations of computing a stage once at every element."""
    kind = stages.kind(tensor)
    points = size_estimate(tensor.shape)
    if kind == "input":
        return 0
    if kind == "scan":
        return points * (2 if scan_spec(tensor.op).decay else 1)
    if kind == "scatter":
        return size_estimate(tensor.op.inputs[0].shape)
    expr = stages.body(tensor)
    work = len(find(expr, lambda e: isinstance(e, ARITHMETIC) and dtype_of(e).startswith(("float", "bfloat"))))
    work += FUNCTION_FLOPS * len(find(expr, lambda e: call_name(e) in ("exp", "exp2", "log", "log1p", "tanh", "sigmoid", "erf", "pow")))
    if kind == "reduce":
        points *= size_estimate([axis.dom.extent for axis in stages.reduce_axes(tensor)])
        work += 1
    return points * work
