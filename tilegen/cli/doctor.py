"""``tilegen doctor``"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tilegen.cli import console


def command(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not try the compiler, which takes seconds.")] = False,
) -> None:
    """Say what is installed, where things are, what is wrong and how to mend it."""
    from tilegen import doctor

    findings = doctor.examine(try_compiler=not quick)
    report = doctor.report(findings)
    if json:
        console.print_json(report)
    else:
        show(findings)
    if not report["ok"]:
        raise typer.Exit(1)


def show(findings: list) -> None:
    """The findings as one table, the problems with their remedies below it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    section = None
    for f in findings:
        mark = "[red]x[/]" if f.remedy else "[green]✓[/]"
        table.add_row("" if f.section == section else f"[bold]{f.section}[/]", mark, f.name, escape(_readable(f.value)))
        section = f.section
    out = console.out()
    out.print(table)
    problems = [f for f in findings if f.remedy]
    for f in problems:
        out.print(f"[red]{f.name}[/]: {escape(str(f.value))}\n  [bold]mend it:[/] {escape(f.remedy)}")
    out.print("[green]nothing wrong[/]" if not problems else f"[red]{len(problems)} problem(s)[/]")


def _readable(value: object) -> str:
    """A derived target as ``name=value``, its long list of features as their number."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k}={len(v) if isinstance(v, list) else v}" for k, v in value.items())
