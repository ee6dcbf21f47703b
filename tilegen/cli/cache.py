"""``tilegen cache``: what the disk cache of compiled libraries holds."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.markup import escape

from tilegen.cli import console


def command(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove every library; operators compile again when they are used.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print where compiled libraries are kept, how many there are and how large they are."""
    from tilegen import cache

    found = cache.clear() if clear else cache.info()
    if json:
        console.print_json(dataclasses.asdict(found))
        return
    size, done = f"{found.bytes / 2**20:.1f} MiB", "removed " if clear else ""
    console.out().print(
        f"{escape(str(found.path))}: {done}{found.libraries} libraries, {size}, {found.quarantined} damaged set aside"
    )
