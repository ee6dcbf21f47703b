"""The plan of an instance: for each direction its kernels, and what is saved between them.

Saved or recomputed (remat) is decided by the cost model: every plan of a short list of candidates is made, and the one
with the least estimated time of forward and backward together wins; at about equal times the one that saves less, unless that
is next to nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, te, tirx

from tilegen.errors import PlanError
from tilegen.expression import compute
from tilegen.expression.ragged import is_table
from tilegen.expression.walkers import const_int, topological, variables
from tilegen.mechanisms import Instance
from tilegen.plan import stages
from tilegen.plan.blocks import blocked
from tilegen.plan.cost import Balance, Cost, kernel_cost, nbytes, sources, total
from tilegen.plan.emit import prim_func
from tilegen.plan.evaluate import MathRule
from tilegen.plan.graphs import Graph, backward_graph, forward_graph
from tilegen.plan.kernel import Kernel
from tilegen.plan.partition import Partition
from tilegen.plan.pieces import in_pieces
from tilegen.plan.tiles import TileKernel, TilePartition, has_tiles

SLACK = 1.02
"""A plan must be this much faster to be worth more saved memory."""

LITTLE = 0.25
"""A part of what may be saved that is so little that it need not be worth anything: statistics of rows."""

SAVED_SHARE = 0.25
"""What may be saved at most, as a part of the bytes of arguments and results: memory is what limits training, not time."""


@dataclass(frozen=True)
class PlanArg:
    """One argument of a planned function."""

    name: str
    role: str
    tensor: te.Tensor


@dataclass
class FunctionPlan:
    """The kernels of one direction in order, and the arguments of the function that runs them."""

    name: str
    args: list[PlanArg]
    kernels: list[Kernel]
    ready: set[te.Tensor]

    def prim_func(self, math: MathRule | None = None) -> tirx.PrimFunc:
        """All kernels as one unscheduled function "main"."""
        return prim_func([(arg.name, arg.tensor) for arg in self.args], self.kernels, math)

    def kernel_func(self, kernel: Kernel, math: MathRule | None = None) -> tuple[tirx.PrimFunc, list[PlanArg]]:
        """One kernel as a function of its own, with the arguments it reads and writes: what a search measures."""
        read, _ = sources(kernel, self.in_memory())
        used = {*read, *kernel.writes()}
        whole = prim_func([(arg.name, arg.tensor) for arg in self.args], [kernel], math)
        met: set[Any] = set()
        tvm_ffi.structural_walk(whole.body, (ir.Var, met.add))
        if any(frame.ragged for frame in getattr(kernel, "frames", {}).values()):
            # Loops and conditions ask the tables of packed sequences which tiles there are.
            used |= {arg.tensor for arg, param in zip(self.args, whole.params, strict=True) if param in met}
        met |= {v for tensor in used for dim in tensor.shape for v in variables(dim)}
        telling = {arg.tensor: {dim for dim in arg.tensor.shape if isinstance(dim, ir.Var)} for arg in self.args}
        for size in met.intersection(set().union(*telling.values())):
            # An argument that it does not touch may be the only one that tells a size.
            if not any(size in telling[tensor] for tensor in used):
                used.add(min((t for t, sizes in telling.items() if size in sizes), key=lambda tensor: len(tensor.shape)))
        args = [arg for arg in self.args if arg.tensor in used]
        return prim_func([(arg.name, arg.tensor) for arg in args], [kernel], math), args

    def in_memory(self) -> set[te.Tensor]:
        """Everything that is an argument."""
        return {arg.tensor for arg in self.args}

    def costs(self) -> list[Cost]:
        """The cost of each kernel."""
        return [kernel_cost(kernel, self.in_memory()) for kernel in self.kernels]


@dataclass(frozen=True)
class Choice:
    """One way to divide the work: what is saved (names and bytes), and the estimated seconds of forward and backward."""

    saved: tuple[str, ...]
    nbytes: int
    seconds: float


@dataclass
class Plan:
    """All directions of an instance; `saved` are the tensors that the forward leaves for the backward.

    `choices` are the sets that were considered for saving, with `chosen` the one that was taken.
    """

    instance: Instance
    functions: dict[str, FunctionPlan]
    saved: list[te.Tensor] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    chosen: Choice | None = None


def plan(
    instance: Instance,
    sizes: dict[str, int] | None = None,
    balance: Balance | None = None,
    *,
    backward: bool = True,
    pieces: bool = False,
) -> Plan:
    """Plan the forward and, if asked, the backward of `instance`; `sizes` makes the symbolic sizes static.

    `pieces` is for devices on which a task has little memory: lists that it cannot hold are walked.
    """
    balance = balance or Balance()
    forward = forward_graph(instance, sizes)
    distinct_outputs(forward)
    if not backward:
        in_blocks(forward, pieces=pieces)
        return Plan(instance, {"forward": plan_forward(forward, [])})
    back = backward_graph(instance, forward)
    distinct_outputs(back)
    in_blocks(forward, back, pieces=pieces)
    best: Plan | None = None
    choices: list[Choice] = []
    room = SAVED_SHARE * sum(nbytes(t) for t in [*forward.inputs.values(), *forward.outputs.values()])
    named = named_stages(instance, forward)
    for saved in named or saved_candidates(forward, back):
        functions = {"forward": plan_forward(forward, saved), "backward": plan_backward(forward, back, saved)}
        time = sum(total(function.costs(), balance) for function in functions.values())
        choices.append(Choice(tuple(t.op.name for t in saved), sum(nbytes(t) for t in saved), time))
        if best is not None and not named and choices[-1].nbytes > room:
            continue
        little = choices[-1].nbytes <= LITTLE * room
        if best is None or best.chosen is None or time * (1.0 if little else SLACK) < best.chosen.seconds:
            best = Plan(instance, functions, saved, choices, choices[-1])
    assert best is not None
    return best


def in_blocks(*graphs: Graph, pieces: bool = False) -> None:
    """Cut the large contractions of some graphs that share stages into blocks, and if wanted the long lists of tiles into pieces."""
    tensors = [tensor for graph in graphs for tensor in graph.outputs.values()]
    changed = iter(blocked(in_pieces(tensors) if pieces else tensors))
    for graph in graphs:
        graph.outputs.update({name: next(changed) for name in graph.outputs})


def named_stages(instance: Instance, forward: Graph) -> list[list[te.Tensor]]:
    """The one set of stages that a mechanism names itself, as a list of candidates; empty when it leaves the choice."""
    chosen = instance.mechanism.saved
    names = chosen(instance) if callable(chosen) else chosen
    if names is None:
        return []
    stages_by_name = {op.name: op.output(0) for op in topological(forward.outputs.values())}
    if missing := [name for name in names if name not in stages_by_name]:
        raise PlanError(
            f"'{instance.mechanism.name}' wants {', '.join(missing)} saved, which is no stage of its expression; "
            f"name stages among {', '.join(sorted(stages_by_name))}"
        )
    return [[stages_by_name[name] for name in names]]


def saved_candidates(forward: Graph, back: Graph) -> list[list[te.Tensor]]:
    """Sets of forward stages worth considering for saving, smallest first.

    Nothing; what a backward that recomputes everything writes between its kernels; and so on from that set, until
    nothing of the forward is written by the backward.
    """
    own = dict.fromkeys(op.output(0) for op in topological(forward.outputs.values()))  # in order, so that plans are reproducible
    candidates: list[list[te.Tensor]] = [[]]
    for _ in range(4):
        function = plan_backward(forward, back, candidates[-1])
        extra = [
            arg.tensor for arg in function.args if arg.role == "workspace" and arg.tensor in own and not is_table(arg.tensor)
        ]
        if not extra:
            break
        candidates.append([*candidates[-1], *extra])
    # All that any kernel needs from the forward's reductions and scans, none of them computed twice.
    anchors = [t for t in own if stages.is_anchor(t)]
    if anchors:
        function = plan_backward(forward, back, anchors)
        used = [arg.tensor for arg in function.args if arg.role == "saved"]
        if used and not any(set(used) == set(known) for known in candidates):
            candidates.append(used)
    return sorted(candidates, key=lambda saved: sum(nbytes(t) for t in saved))


def plan_forward(graph: Graph, saved: Sequence[te.Tensor]) -> FunctionPlan:
    """The forward with `saved` written beside its outputs."""
    inputs = [PlanArg(name, "input", tensor) for name, tensor in graph.inputs.items()]
    outputs = [PlanArg(name, "output", tensor) for name, tensor in graph.outputs.items()]
    kept = [PlanArg(f"saved_{k}_{label(t)}", "saved", t) for k, t in enumerate(saved) if t not in graph.outputs.values()]
    return _function("forward", inputs, [*outputs, *kept])


def plan_backward(forward: Graph, back: Graph, saved: Sequence[te.Tensor]) -> FunctionPlan:
    """The backward, which may read inputs, outputs and what was saved; arguments it does not use are left out."""
    kept = [PlanArg(f"saved_{k}_{label(t)}", "saved", t) for k, t in enumerate(saved) if t not in forward.outputs.values()]
    given = [
        *[PlanArg(name, "input", tensor) for name, tensor in forward.inputs.items()],
        *[PlanArg(name, "output", tensor) for name, tensor in forward.outputs.items()],
        *kept,
        *[PlanArg(f"grad_{name}", "grad_output", tensor) for name, tensor in back.grads.items()],
    ]
    results = [PlanArg(name, "grad_input", tensor) for name, tensor in back.outputs.items()]
    return _function("backward", given, results)


def replanned(function: FunctionPlan, changed: Mapping[te.Tensor, te.Tensor], apart: Collection[te.Tensor]) -> FunctionPlan:
    """The same function by other kernels: results as they are in `changed`, states of walks in memory, see `TilePartition`."""
    given = [arg for arg in function.args if arg.tensor in function.ready]
    results = [arg for arg in function.args if arg.tensor not in function.ready and arg.role != "workspace"]
    results = [dataclasses.replace(arg, tensor=changed.get(arg.tensor, arg.tensor)) for arg in results]
    return _function(function.name, given, results, apart)


def _function(
    name: str, given: list[PlanArg], results: list[PlanArg], apart: Collection[te.Tensor] | None = None
) -> FunctionPlan:
    ready = [arg.tensor for arg in given]
    partition = partitioned([arg.tensor for arg in results], ready, apart)
    written = {arg.tensor for arg in results}
    inner = [t for kernel in partition.kernels for t in kernel.writes() if t not in written]
    workspace = [PlanArg(f"workspace_{k}_{label(t)}", "workspace", t) for k, t in enumerate(inner)]
    function = FunctionPlan(name, [*given, *results, *workspace], partition.kernels, set(ready))
    if name == "backward":
        used: set[te.Tensor] = set()
        for kernel in partition.kernels:
            used |= {*sources(kernel, function.in_memory())[0], *kernel.writes()}
        used |= _size_givers(function, used)
        function.args = [arg for arg in function.args if arg.tensor in used]
    for kernel in function.kernels:
        kernel.loads = sources(kernel, function.in_memory())[0]
    narrowest = min((stages.element_bytes(arg.tensor) for arg in function.args if "float" in str(arg.tensor.dtype)), default=0)
    for kernel in partition.kernels:
        if isinstance(kernel, TileKernel):
            kernel.memory = function.in_memory() - set(kernel.emits)
            got = {arg.tensor for arg in function.args if arg.role in ("output", "grad_input")}
            kernel.precise = {t for t in kernel.emits if t in got and stages.element_bytes(t) > narrowest}
    _mark_unread(function)
    _check_symbols(function)
    return function


def _mark_unread(function: FunctionPlan) -> None:
    """Tell tile kernels what of their tiles nobody reads where a tile has no elements: only tasks that are skipped there do.

    A task that is not skipped reads its own tile, or others of its sequence, and each of those has elements.
    """
    for k, kernel in reversed(list(enumerate(function.kernels))):
        if not isinstance(kernel, TileKernel):
            continue
        results = {arg.tensor for arg in function.args if arg.role != "workspace"}
        for tensor in kernel.emits:
            readers = [later for later in function.kernels[k + 1 :] if tensor in later.loads]
            if tensor not in results and all(isinstance(r, TileKernel) and r.elements(list(r.space)) for r in readers):
                kernel.unread.add(tensor)


def _size_givers(function: FunctionPlan, used: set[te.Tensor]) -> set[te.Tensor]:
    """Arguments that are given though no kernel reads them: from them the function knows a symbolic size of what it writes."""
    given = [arg.tensor for arg in function.args if arg.tensor in function.ready]
    sizes = lambda tensor: {dim for dim in tensor.shape if isinstance(dim, tirx.Var)}  # noqa: E731
    known = {size for tensor in given if tensor in used for size in sizes(tensor)}
    wanted = {size for tensor in used for dim in tensor.shape for size in variables(dim)}
    found: set[te.Tensor] = set()
    for tensor in given:
        if sizes(tensor) & wanted - known:
            found.add(tensor)
            known |= sizes(tensor)
    return found


def partitioned(
    outputs: list[te.Tensor], ready: list[te.Tensor], apart: Collection[te.Tensor] | None = None
) -> Partition | TilePartition:
    """The kernels of a graph: by tiles where it has reductions inside tiles, by walks and maps elsewhere."""
    if has_tiles([op.output(0) for op in topological(outputs) if not isinstance(op, te.PlaceholderOp)]):
        return TilePartition(outputs, ready, apart=apart)
    return Partition(outputs, ready)


def _check_symbols(function: FunctionPlan) -> None:
    """A symbolic size is known to a function only from an argument that has it as a dim of its own."""
    bare = {dim for arg in function.args for dim in arg.tensor.shape if isinstance(dim, tirx.Var)}
    for arg in function.args:
        for dim in arg.tensor.shape:
            assert const_int(dim) is not None or dim in bare or not isinstance(dim, tirx.Var), (
                f"{function.name}: {dim} of {arg.name}"
            )


def distinct_outputs(graph: Graph) -> None:
    """Give every output a stage of its own: one that is an input or another output too becomes a copy."""
    taken = set(graph.inputs.values()) | set(graph.grads.values())
    for name, tensor in graph.outputs.items():
        if tensor in taken:
            graph.outputs[name] = tensor = copy(tensor, name)
        taken.add(tensor)


def copy(tensor: te.Tensor, name: str) -> te.Tensor:
    """A stage equal to `tensor`."""
    return compute(list(tensor.shape), lambda *i: tensor(*i), name=name)


def label(tensor: te.Tensor) -> str:
    """The name of a stage as part of an argument name."""
    return "".join(c if c.isalnum() else "_" for c in tensor.op.name)


def shape_text(tensor: te.Tensor) -> list[Any]:
    """The shape of an argument as a manifest holds it."""
    return [const_int(dim) if const_int(dim) is not None else expr_text(dim) for dim in tensor.shape]


def expr_text(expr: Any) -> str:
    """An integer expression over symbolic sizes as text (TVM's own printer renames variables)."""
    if const_int(expr) is not None:
        return str(const_int(expr))
    if isinstance(expr, tirx.Var):
        return expr.name
    signs = {"Add": "+", "Sub": "-", "Mul": "*", "FloorDiv": "//"}
    sign = signs[type(expr).__name__]
    return f"({expr_text(expr.a)} {sign} {expr_text(expr.b)})"
