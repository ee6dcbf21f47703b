"""Sums of two stages in the value of another: contractions among them need registers for one result, not for two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import te

from tilegen.expression.walkers import find, is_load, load_tensor, prim
from tilegen.plan import stages

if TYPE_CHECKING:
    from tilegen.plan.gpu.holding import Node
    from tilegen.plan.gpu.program import Program


def of_two(tensor: te.Tensor, held: set[te.Tensor]) -> list[tuple[te.Tensor, te.Tensor]]:
    """The pairs of stages that the value of a pointwise stage reads nowhere but in their sum.

    Parameters
    ----------
    held : stages that are not computed where they are read.
    """
    if stages.kind(tensor) != "map":
        return []
    pairs: list[tuple[te.Tensor, te.Tensor]] = []
    counts: dict[te.Tensor, int] = {}
    seen, stack = {tensor}, [tensor]
    while stack:
        body = stages.body(stack.pop())
        for load in find(body, is_load):
            read = load_tensor(load)
            counts[read] = counts.get(read, 0) + 1
            if read not in held and read not in seen and stages.kind(read) == "map":
                seen.add(read)
                stack.append(read)
        added = find(body, lambda e: isinstance(e, prim.Add) and is_load(e.a) and is_load(e.b))
        pairs += [(load_tensor(e.a), load_tensor(e.b)) for e in added]
    return [(a, b) for a, b in pairs if a not in {b} and counts[a] == counts[b] == 1]


def joined(program: Program) -> dict[te.Tensor, te.Tensor]:
    """Products that are only added to an earlier one, by that: they go on where it stopped, in its registers."""
    found: dict[te.Tensor, te.Tensor] = {}
    if program.branch is not None:
        return found
    for node in program.steps:
        if node.way != "fragment" or node.role not in ("emit", "map"):
            continue
        for pair in of_two(node.tensor, program.memory | (program.keep - {node.tensor})):
            if not all(t in program.nodes and _stays(program, program.nodes[t], node) for t in pair):
                continue
            first, then = sorted((program.nodes[t] for t in pair), key=lambda n: n.position)
            alike = first.layout == then.layout and (first in program.precise) == (then in program.precise)
            if alike and found.keys().isdisjoint(pair) and set(found.values()).isdisjoint(pair):
                found[then.tensor] = first.tensor
    return found


def only_added(program: Program, node: Node) -> bool:
    """Whether states alone read a product, and no product whose rows stay within a warp has its right operand in registers."""
    assert node.operands is not None
    readers = [other for other in program.steps if any(program.nodes[r.source] is node for r in other.reads)]
    beside = [n for n in program.steps if n is not node and n.way == "contract" and n.operands is not None and n.operands[1] == node.operands[1]]
    shared = any(n.layout is not None and n.layout.across == 1 for n in beside)
    return bool(readers) and not shared and all(other.role == "state" for other in readers)


def _stays(program: Program, node: Node, reader: Node) -> bool:
    """Whether a product is in registers alone, and `reader` alone reads it."""
    held = program.held.get(node.tensor)
    if node.way != "contract" or held is None or held.wide or held.narrow:
        return False
    reads = [(other, source) for other in program.steps for source in [*[r.source for r in other.reads], *[o.source for o in other.operands or ()]]]
    return {id(other) for other, source in reads if program.nodes[source] is node} == {id(reader)}
