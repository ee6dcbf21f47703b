"""The graphs of an instance for packed sequences: those of equal lengths, rewritten by `tilegen.expression.pack`.

Forward and adjoint go through one rewriting, so that what the backward reads of the forward is what the forward computes.
An empty sequence leaves a state as it was, and hands its gradient on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tilegen.errors import ExpressionError
from tilegen.expression import compute
from tilegen.expression.pack import Packer
from tilegen.expression.ragged import POSITIONS, Place
from tilegen.mechanisms import ArgSpec, Instance, table_specs
from tilegen.plan.frames import EVERYWHERE
from tilegen.plan.graphs import Graph, backward_graph


@dataclass
class Packing:
    """The graph before packing, and the rewriting that knows what became of its tensors."""

    dense: Graph
    packer: Packer


def packed_forward(instance: Instance, dense: Graph) -> Graph:
    """The forward over packed sequences, with their tables among the inputs."""
    symbols = dense.dims.symbols
    packing = Packing(dense, Packer(symbols["B"], symbols["T"], tirx.Var("S", "int32")))
    packed = dict(zip(dense.outputs, packing.packer.pack(list(dense.outputs.values())), strict=True))
    graph = Graph({name: arguments(packing, x) for name, x in dense.inputs.items()}, packed, dense.dims, packing=packing)
    for spec in instance.mechanism.outputs(instance.config):
        if _is_state(spec):
            before = graph.inputs.get(spec.name.removesuffix("_out"))
            graph.outputs[spec.name] = _kept(packing, spec, packed[spec.name], before)
    return _with_tables(instance, graph)


def packed_backward(instance: Instance, forward: Graph) -> Graph:
    """The adjoint over packed sequences."""
    assert forward.packing is not None
    packing = forward.packing
    dense = backward_graph(instance, packing.dense)
    packed = dict(zip(dense.outputs, packing.packer.pack(list(dense.outputs.values())), strict=True))
    grads = {name: arguments(packing, x) for name, x in dense.grads.items()}
    graph = Graph(forward.inputs, packed, dense.dims, grads, packing)
    for spec in instance.mechanism.inputs(instance.config):
        after = grads.get(f"{spec.name}_out")
        if spec.differentiable and _is_state(spec) and after is not None:
            own = packed[f"grad_{spec.name}"]
            graph.outputs[f"grad_{spec.name}"] = _where_empty(packing, own, lambda i, x=after: x(*i), f"grad_{spec.name}_kept")
    return _with_tables(instance, graph)


def arguments(packing: Packing, x: te.Tensor) -> te.Tensor:
    """The packed form of an argument, whether an output depends on it or not."""
    if x not in packing.packer.done:
        packing.packer.pack([x])
    return packing.packer.done[x]


def _is_state(spec: ArgSpec) -> bool:
    return "B" in spec.shape and "T" not in spec.shape


def _kept(packing: Packing, spec: ArgSpec, after: te.Tensor, before: te.Tensor | None) -> te.Tensor:
    """The final states; of an empty sequence the initial one."""
    dtype = str(after.dtype)
    nothing = tirx.max_value(dtype) if spec.empty == "largest" else tirx.const(spec.empty, dtype)
    return _where_empty(packing, after, lambda i: nothing if before is None else before(*i), f"{spec.name}_kept")


def _where_empty(packing: Packing, otherwise: te.Tensor, value: Any, name: str) -> te.Tensor:
    """`value` at the entries of sequences without positions."""

    def body(*i: Any) -> Any:
        positions = packing.packer.length(POSITIONS, Place(i[0], None, i[0]))
        return tirx.if_then_else(positions > 0, otherwise(*i), value(i))

    return compute(list(otherwise.shape), body, name, {EVERYWHERE: "1"})


def _with_tables(instance: Instance, graph: Graph) -> Graph:
    """`graph` with the tables of every kind of tile as inputs, used or not, in the order of the specs."""
    assert graph.packing is not None
    packer, lengths = graph.packing.packer, instance.mechanism.lengths(instance.config)
    if unknown := sorted(set(packer.tables) - set(lengths)):
        raise ExpressionError(
            f"'{instance.mechanism.name}' cuts the sequence into tiles of {', '.join(map(str, unknown))}, its `tiles` are "
            f"{', '.join(map(str, lengths[1:])) or 'none'}; name them there"
        )
    tables: dict[str, te.Tensor] = {}
    for length in lengths:
        table = packer.table(length)
        tables |= {spec.name: table[spec.name.partition("_")[0]] for spec in table_specs(length)}
    graph.inputs = tables | {name: x for name, x in graph.inputs.items() if name not in tables}
    return graph
