"""``tilegen list``"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tilegen.cli import console
from tilegen.cli.instance import instance, required, typical


def command(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the operators: arguments, options, and what has been tuned on this machine."""
    rows = [describe(name) for name in _names()]
    if json:
        console.print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("operator", "inputs -> outputs", "options", "records here"):
        table.add_column(title)
    for row in rows:
        signature = f"{', '.join(row['inputs'])} -> {', '.join(row['outputs'])}"
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        table.add_row(row["name"], escape(signature), options, str(row["records"]))
    console.out().print(table)


def describe(name: str) -> dict[str, Any]:
    """One operator as JSON-able data."""
    from tilegen import mechanisms

    found = mechanisms.get(name)
    config = instance(name, typical(found)).config
    options = {k: "required" if k in required(found) else v for k, v in dataclasses.asdict(config).items()}
    return {
        "name": name,
        "inputs": [_text(spec) for spec in found.inputs(config)],
        "outputs": [_text(spec) for spec in found.outputs(config)],
        "options": options,
        "symbolic": list(found.symbolic),
        "static": list(found.static),
        "records": records(name),
    }


def records(name: str) -> int:
    """How many records of an operator the logs hold for this machine, the user's and the shipped ones."""
    from tilegen import build, settings
    from tilegen.tune.records import log_path, read

    folders = (settings.log_dir(), settings.shipped_log_dir())
    return sum(len(read(log_path(folder, build.host_name(), name))) for folder in folders)


def _names() -> list[str]:
    from tilegen import mechanisms

    return mechanisms.names()


def _text(spec: Any) -> str:
    return f"{spec.name}[{','.join(map(str, spec.shape))}]"
