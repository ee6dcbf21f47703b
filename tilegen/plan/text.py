"""A plan as text: the arguments of each function, and what each of its kernels reads, computes and writes."""

from __future__ import annotations

from collections.abc import Iterator

from tilegen.expression.printer import text
from tilegen.plan.cost import Balance, Cost, sources
from tilegen.plan.kernel import Kernel
from tilegen.plan.plan import FunctionPlan, Plan, PlanArg


def plan_text(function: FunctionPlan, balance: Balance | None = None) -> str:
    """Arguments by role, then the kernels in the order in which they run; costs are estimates at guessed symbolic sizes."""
    balance = balance or Balance()
    lines = []
    for role in dict.fromkeys(arg.role for arg in function.args):
        same = [_argument(arg) for arg in function.args if arg.role == role]
        lines.append(f"{role:<12}{', '.join(same)}")
    costs = function.costs()
    for kernel, cost in zip(function.kernels, costs, strict=True):
        lines += _kernel(kernel, cost, balance, function)
    return "\n".join(lines)


def choices_text(plan: Plan) -> str:
    """What was considered for saving between forward and backward, with the model's estimates; an arrow marks the choice."""
    lines = []
    for choice in plan.choices:
        mark = "->" if choice is plan.chosen else "  "
        what = ", ".join(choice.saved) or "nothing"
        lines.append(f"{mark} {choice.seconds * 1e6:9.2f} us  {choice.nbytes:9d} bytes saved: {what}")
    return "\n".join(lines)


def _argument(arg: PlanArg) -> str:
    return f"{arg.name}: {arg.tensor.dtype}[{', '.join(map(text, arg.tensor.shape))}]"


def _kernel(kernel: Kernel, cost: Cost, balance: Balance, function: FunctionPlan) -> Iterator[str]:
    names = {arg.tensor: arg.name for arg in function.args}
    read, computed = sources(kernel, function.in_memory())
    points = f"at [{', '.join(map(text, kernel.space))}]"
    if kernel.pattern == "walk":
        points += f" along {text(kernel.extent)}{', from the end' if kernel.reverse else ''}"
    yield f"{kernel.name} ({kernel.pattern} {points})"
    yield f"  reads     {', '.join(names[t] for t in read)}"
    if kernel.anchors:
        yield f"  carries   {', '.join(t.op.name for t in kernel.anchors)}"
    inner = [t.op.name for t in computed if t not in kernel.anchors and t not in names]
    if inner:
        yield f"  computes  {', '.join(inner)}"
    yield f"  writes    {', '.join(names[t] for t in kernel.writes())}"
    bound = "memory" if cost.bytes / balance.bytes_per_second >= cost.flops / balance.flops_per_second else "arithmetic"
    yield f"  estimate  {cost.bytes} bytes, {cost.flops} flops: bound by {bound}"
