"""``tilegen tune``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilegen.cli import console
from tilegen.cli.instance import Dtype, Set, Tf32, instance, sizes, typical
from tilegen.errors import ArgumentError


def command(
    op: Annotated[
        list[str] | None, typer.Argument(metavar="[OP]...", help="Operators, see `tilegen list`.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every operator.")] = False,
    set_: Set = None,
    dtype: Dtype = "float32",
    shape: Annotated[str | None, typer.Option("--sizes", metavar="B=4,T=2048", help="Sizes to measure at.")] = None,
    minutes: Annotated[float | None, typer.Option(help="For the whole call.")] = None,
    trials: Annotated[int | None, typer.Option(help="For each kernel, over all calls.")] = None,
    effort: Annotated[str, typer.Option(help="quick, default or max: how long when neither of the above is given.")] = "default",
    target: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or cuda:1, or a lesser CPU than this one, x86-64-v3; kernels are run here. Default: its GPU, else its CPU."
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,3", help="Measure on several GPUs of one model at once: their numbers, or all.", show_default=False
        ),
    ] = None,
    functions: Annotated[
        str, typer.Option(help="Which of forward, backward and step (a GPU's), with commas.")
    ] = "forward,backward",
    resume: Annotated[bool, typer.Option(help="Go on with the trials of earlier calls.")] = True,
    log_dir: Annotated[
        Path | None, typer.Option(help="Where records go; default: this user's folder.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds propose alike.")] = 0,
    rpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Measure on a server of this TVM RPC tracker; it runs what it is sent.", show_default=False
        ),
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the servers at the tracker, with --rpc.", show_default=False)] = "",
    report_file: Annotated[
        Path | None, typer.Option("--report", metavar="OUT.html", help="Also write a page with plots.", show_default=False)
    ] = None,
    tf32: Tf32 = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Search the fastest tiles for this machine.  Interrupt it at any time: the same command goes on from there."""
    from tilegen import mechanisms, tune

    if bool(op) == all_:
        raise ArgumentError(
            "OP is missing, name operators or say --all" if not op else "OP and --all were both given, choose one"
        )
    if all_:
        instances = [instance(name, typical(mechanisms.get(name), set_), dtype) for name in mechanisms.names()]
    else:
        instances = [instance(name, set_, dtype) for name in op or []]
    symbolic = tuple(dict.fromkeys(name for found in instances for name in found.symbolic))
    report = tune.tune(
        instances,
        shapes=sizes(shape, symbolic, "--sizes"),
        minutes=minutes,
        trials=trials,
        effort=effort,
        target=target,
        resume=resume,
        log_dir=log_dir,
        seed=seed,
        functions=tuple(part.strip() for part in functions.split(",") if part.strip()),
        devices=devices,
        rpc=rpc,
        key=key,
        tf32=tf32,
    )
    if report_file is not None:
        from tilegen.tune import html

        html.write(report, report_file)
    if json:
        console.print_json(report.to_json())
        return
    for line in report.lines():
        console.out().print(line, markup=False)
