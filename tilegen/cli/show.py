"""``tilegen show OP --stage ...``: every stage between the expression and the machine code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilegen.cli import console
from tilegen.cli.instance import TARGETS, Dtype, Op, Set, Tf32, instance
from tilegen.errors import ArgumentError

if TYPE_CHECKING:
    from tilegen.mechanisms import Instance

Part = tuple[str, str, str]
"""Title, text, language."""

FUNCTIONS = ("forward", "backward", "step")


@dataclass(frozen=True)
class Chosen:
    """The name of a target, and whether products of float32 tensors are in TF32 there."""

    name: str | None = None
    tf32: bool = False


def command(
    op: Op,
    stage: Annotated[str, typer.Option(help="te, grad, plan, tir, source or trace.")] = "te",
    set_: Set = None,
    dtype: Dtype = "float32",
    function: Annotated[str | None, typer.Option(help="forward, backward or step; default: all of them.")] = None,
    target: Annotated[str | None, typer.Option(help=TARGETS)] = None,
    tf32: Tf32 = False,
) -> None:
    """Print what an operator becomes: expression, gradient, kernels, scheduled code, machine code, schedule trace."""
    if stage not in STAGES:
        raise ArgumentError(f"--stage is {stage!r}, must be one of {', '.join(STAGES)}")
    if function is not None and function not in FUNCTIONS:
        raise ArgumentError(f"--function is {function!r}, must be one of {', '.join(FUNCTIONS)}")
    found = instance(op, set_, dtype)
    wanted = FUNCTIONS if function is None else (function,)
    for title, text, language in STAGES[stage](found, wanted, Chosen(target, tf32)):
        _print(title, text, language)


def te(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """The forward expression, one stage a line."""
    from tilegen.expression.printer import graph_text
    from tilegen.plan.graphs import forward_graph

    step = found.step_instance()
    graphs = {"forward": found} | ({"step": step} if step else {})
    for name, one in graphs.items():
        if name in functions:
            yield name, graph_text(forward_graph(one).outputs.values()), "python"


def grad(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """The stages that differentiation adds to the forward expression."""
    from tilegen.expression.printer import graph_text
    from tilegen.expression.walkers import operations
    from tilegen.plan.graphs import backward_graph, forward_graph

    forward = forward_graph(found)
    backward = backward_graph(found, forward)
    own = operations(forward.outputs.values())
    yield "backward", graph_text(backward.outputs.values(), hide=own), "python"


def plan(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """Kernels, workspace and saved tensors."""
    from tilegen.build.library import functions_of
    from tilegen.plan.plan import plan as planned
    from tilegen.plan.text import choices_text, plan_text

    if "backward" in functions:
        yield "saved or recomputed", choices_text(planned(found)), "text"
    for name, (_, function) in functions_of(found, functions).items():
        yield name, plan_text(function), "text"


def tir(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """The scheduled functions."""
    for name, scheduled in _scheduled(found, functions, target):
        yield name, scheduled.mod["main"].script(), "python"


def source(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """The generated code, as the code generator wrote it: LLVM's language, or CUDA C++."""
    from tilegen.build import library
    from tilegen.build.target import resolve

    chosen = resolve(target.name, tf32=target.tf32)
    parts = library.scheduled_parts(found, functions, chosen).parts
    if chosen.kind == "cuda":
        from tilegen.build import cuda

        yield ", ".join(parts), cuda.generate(parts, chosen), "cuda"
    else:
        yield ", ".join(parts), library.generate(parts, chosen).mod.inspect_source("ll"), "llvm"


def trace(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[Part]:
    """The schedule of each function as primitives, and where the decisions of each kernel came from."""
    for name, scheduled in _scheduled(found, functions, target):
        for made in scheduled.provenance:
            decisions = json.dumps(made["decisions"])
            products = f", products in {made['products']}" if "products" in made else ""
            words = f"{made['rule']}, {made['source']}, record {made['record']}: {decisions}{products}"
            yield f"{name}.{made['kernel']}", words, "text"
        if scheduled.trace is not None:
            yield name, str(scheduled.trace), "python"


STAGES: dict[str, Callable[..., Iterator[Part]]] = {
    "te": te,
    "grad": grad,
    "plan": plan,
    "tir": tir,
    "source": source,
    "trace": trace,
}


def _scheduled(found: Instance, functions: tuple[str, ...], target: Chosen) -> Iterator[tuple[str, Any]]:
    from tilegen.build.library import functions_of
    from tilegen.build.scheduled import schedule
    from tilegen.build.target import resolve

    chosen = resolve(target.name, tf32=target.tf32)
    gpu = chosen.machine if chosen.kind == "cuda" else None
    for name, (owner, function) in functions_of(found, functions, gpu).items():
        yield name, schedule(owner, function, chosen)


def _print(title: str, text: str, language: str) -> None:
    """Coloured on a terminal; plain, and so diffable, in a pipe or file."""
    out = console.out()
    if not out.is_terminal:
        print(f"# {title}\n{text.rstrip()}\n")
        return
    from rich.syntax import Syntax

    out.rule(f"[bold]{title}", align="left")
    out.print(Syntax(text.rstrip(), language, background_color="default", word_wrap=False))
