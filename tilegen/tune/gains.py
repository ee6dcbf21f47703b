"""What the records of a log gained, as Markdown tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tilegen import mechanisms
from tilegen.errors import TilegenError
from tilegen.tune import logs, records
from tilegen.tune.progress import duration
from tilegen.tune.records import Record


def tables(where: Path) -> list[str]:
    """Lines of Markdown: for each device a heading with how its records were made, and a row for the best record of each kernel.

    Parameters
    ----------
    where : a log or a folder of logs.

    Raises
    ------
    RecordError
        When it does not exist.
    """
    found: dict[str, list[Record]] = {}
    for path in logs.log_files(where):
        kept = records.read(path)
        for task in dict.fromkeys(record.key.task for record in kept):
            best = records.best(kept, task)
            if best is not None:
                found.setdefault(best.key.host, []).append(best)
    lines = []
    for host, best_ones in sorted(found.items()):
        lines += ["", *_table(host, best_ones)]
    return lines[1:]


def _table(host: str, found: list[Record]) -> list[str]:
    days = sorted({record.created[:10] for record in found})
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    names = {str(record.device.get("name", host)) for record in found}
    versions = sorted({f"CUDA {record.versions['cuda']}" for record in found if "cuda" in record.versions})
    drivers = sorted({f"driver for CUDA {record.device['driver']}" for record in found if "driver" in record.device})
    lines = [
        f"`{host}`: {', '.join([*sorted(names), *drivers, *versions, period])}.",
        "",
        "| operator | sizes | kernel | untuned | tuned | gain |",
        "|---|---|---|---|---|---|",
    ]
    found = sorted(found, key=lambda r: (described(r), r.key.function != "forward", r.key.kernel))
    for record in found:
        sizes = ", ".join(f"{name} = {size}" for name, size in record.sizes.items())
        before = duration(record.default_seconds) if record.default_seconds else "-"
        gain = f"{record.default_seconds / record.seconds:.2f}" if record.default_seconds else "-"
        kernel = f"{record.key.function}.{record.key.kernel}"
        lines.append(f"| {described(record)} | {sizes} | {kernel} | {before} | {duration(record.seconds)} | {gain} |")
    total = [(record.default_seconds, record.seconds) for record in found if record.default_seconds]
    before_all, after_all = sum(b for b, _ in total), sum(a for _, a in total)
    if total:
        lines += [
            "",
            f"{len(total)} kernels: {duration(before_all)} untuned, {duration(after_all)} tuned, {before_all / after_all:.2f} times.",
        ]
    return lines


def described(record: Record) -> str:
    """The operator of a record with the options that are not its defaults, its static sizes and its dtype."""
    key = record.key
    options = [f"{name} {value}" for name, value in _given(key.op, key.config)]
    sizes = [f"{name} = {size}" for name, size in key.static.items()]
    return ", ".join([key.op, *options, *sizes, key.dtype])


def _given(op: str, config: Any) -> Iterable[tuple[str, Any]]:
    try:
        fields = dataclasses.fields(mechanisms.get(op).config)
    except TilegenError:  # an operator of somebody else's
        return list(config.items())
    defaults = {f.name: f.default for f in fields}
    return [(name, value) for name, value in config.items() if defaults.get(name, dataclasses.MISSING) != value]
