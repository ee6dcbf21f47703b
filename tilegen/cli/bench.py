"""``tilegen bench OP``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tilegen.cli import console
from tilegen.cli.instance import Dtype, Op, Set, Tf32, check_dtype, sizes, split
from tilegen.errors import ArgumentError


def command(
    op: Op,
    set_: Set = None,
    shape: Annotated[
        str | None, typer.Option("--sizes", metavar="B=4,T=2048", help="Sizes that differ from the usual ones.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(metavar="T,T,...", help="Measure at each of these T.")] = None,
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:index].")] = "auto",
    tf32: Tf32 = False,
    repeats: Annotated[int, typer.Option(min=2, help="Samples whose median is reported.")] = 11,
    forward_only: Annotated[bool, typer.Option("--forward-only", help="Leave the backward pass out.")] = False,
    eager: Annotated[bool, typer.Option(help="Measure PyTorch without torch.compile too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document, in SI units.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture over T, at the usual lengths if --lengths is not given.")
    ] = None,
) -> None:
    """Measure an operator in turns with torch.compile and torch eager; results are checked before they are timed."""
    check_dtype(dtype)
    import torch

    from tilegen.bench import run, show, spec

    benchmark = spec.load(op)
    mechanism = benchmark.described()
    options, static = split(mechanism, set_ or [])
    named = {setting.partition("=")[0] for setting in set_ or []}
    base = {**benchmark.sizes, **{name: size for name, size in static.items() if name in named}}
    base |= sizes(shape, (*mechanism.symbolic, *mechanism.static), "--sizes")
    times = _lengths(lengths) or (list(benchmark.lengths) if plot else [base["T"]])
    plan = run.Plan(
        benchmark,
        options=[options] if options else benchmark.options,
        sizes=[base | {"T": t} for t in times],
        dtype=getattr(torch, dtype),
        device=run.device_named(device),
        repeats=repeats,
        passes=run.PASSES[:1] if forward_only else run.PASSES,
        eager=eager,
    )
    if tf32:
        torch.set_float32_matmul_precision("high")  # for all contenders
    err = console.err()
    with err.status("starting") as status:
        rows = list(run.measure(plan, lambda text: status.update(escape(text))))
    where = run.environment(plan.device)
    if json:
        console.print_json(show.data(rows, where))
    else:
        out = console.out()
        for table in show.tables(rows):
            out.print(table, "")
        copy = f"copy {rows[0].copy_bandwidth / 1e9:.1f} GB/s"
        products = ", TF32 allowed" if where["tf32"] else ""
        out.print(f"{escape(where['device'])}, {where['threads']} threads, {copy}{products}, {where['date']}")
        out.print("medians, ± half the distance of the quartiles; speed-up over torch.compile")
        out.print("GB/s and GFLOP/s count the least that must be moved and computed")
    if plot is not None:
        show.plot(rows, plot, f"{op}, {dtype}, {where['device']}, {where['threads']} threads")
        err.print(f"wrote {escape(str(plot))}")


def _lengths(text: str | None) -> list[int]:
    """The lengths in ``"512,1024"``."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ArgumentError(f"--lengths is {text!r}, must be numbers of at least 1 with commas between them")
    return [int(part) for part in parts]
