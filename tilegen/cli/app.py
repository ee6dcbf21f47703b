"""The application: its commands, and how it ends when something goes wrong."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

import tilegen
from tilegen.cli import bench, cache, console, doctor, export, listing, logs, show, tune
from tilegen.errors import TilegenError


class _OneLineErrors(TyperGroup):
    """Shows an error that a user can mend as one line, with exit code 1; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TilegenError as error:
            if ctx.params.get("debug"):
                raise
            console.err().print(f"[bold red]error:[/] {escape(str(error))}")
            ctx.exit(1)


app = typer.Typer(
    name="tilegen",
    cls=_OneLineErrors,
    help="Sub-quadratic attention from one tensor expression: look, tune, export, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(tilegen.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


app.command("doctor")(doctor.command)
app.command("list")(listing.command)
app.command("show")(show.command)
app.command("tune")(tune.command)
app.command("export")(export.command)
app.command("bench")(bench.command)
app.command("cache")(cache.command)
app.add_typer(logs.app, name="logs")
