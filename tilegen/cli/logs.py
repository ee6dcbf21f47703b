"""``tilegen logs``: look after the files of tuning records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tilegen.cli import console

app = typer.Typer(help="Check, merge, prune and tabulate tuning logs.", no_args_is_help=True)

Where = Annotated[Path | None, typer.Argument(help="A log or a folder of logs; default: this user's.", show_default=False)]


def _own(where: Path | None) -> Path:
    from tilegen import settings

    return where if where is not None else settings.log_dir()


@app.command()
def verify(where: Where = None, json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Check every line; exit code 1 when one is bad.  Changes nothing."""
    from tilegen.tune import logs

    own = _own(where)
    # Not having tuned anything yet is in order; a folder that was named has to be there.
    verdicts = logs.verify(own) if where is not None or own.is_dir() else []
    if json:
        console.print_json([{"path": str(v.path), "records": v.records, "bad": v.bad} for v in verdicts])
    else:
        out = console.out()
        for v in verdicts:
            state = "[green]ok[/]" if not v.bad else f"[red]{len(v.bad)} bad line(s)[/]"
            out.print(f"{escape(str(v.path))}: {v.records} record(s), {state}")
            for line, reason in v.bad:
                out.print(f"  line {line}: {escape(reason)}")
        if not verdicts:
            out.print(f"no logs in {escape(str(own))}")
    if any(v.bad for v in verdicts):
        raise typer.Exit(1)


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Logs or folders of logs to read.")],
    into: Annotated[
        Path | None, typer.Option("--into", help="Folder to add to; default: this user's.", show_default=False)
    ] = None,
) -> None:
    """Add the records of other logs; a record goes to the log of its own device and operator."""
    from tilegen.tune import logs

    added = logs.merge(sources, _own(into))
    console.out().print(f"{added} new record(s) in {escape(str(_own(into)))}")


@app.command()
def prune(
    where: Where = None,
    keep: Annotated[int, typer.Option("--keep", help="Records to keep of every kernel.")] = 1,
) -> None:
    """Keep the best records of every kernel, remove the others."""
    from tilegen.tune import logs

    removed = logs.prune(_own(where), keep)
    console.out().print(f"{removed} record(s) removed from {escape(str(_own(where)))}")


@app.command()
def table(where: Where = None) -> None:
    """What each kernel gained, as a Markdown table for each device: the best records."""
    from tilegen.tune import gains

    print("\n".join(gains.tables(_own(where))))
