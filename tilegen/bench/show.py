"""Shows rows of a benchmark: a table, JSON-able data, a picture over the length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tilegen.bench.run import Row

STYLE = {"tilegen": ("tab:red", "o"), "torch.compile": ("tab:blue", "s"), "torch eager": ("tab:gray", "^")}
"""Colour and mark of each contender."""
OTHER = ("tab:purple", "^")
"""For another library's operator."""

SHORT = {"forward": "forward", "forward+backward": "fwd + bwd"}
"""Passes as the table has them: all of it fits 80 columns."""


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One table per case: options, shape and dtype."""
    for title in dict.fromkeys(map(case, rows)):
        yield _table(title, [row for row in rows if case(row) == title])


def _table(title: str, rows: Sequence[Row]) -> Table:
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for heading in ("pass", "what"):
        view.add_column(heading, no_wrap=True)
    for heading in ("ms", "±", "GB/s", "% copy", "GFLOP/s", "speed-up"):
        view.add_column(heading, justify="right", no_wrap=True)
    previous = ""
    for row in rows:
        t = row.seconds
        view.add_row(
            "" if row.direction == previous else SHORT[row.direction], row.contender, f"{t.median * 1e3:.4g}",
            f"{(t.high - t.low) / 2 / t.median:.0%}", f"{row.bandwidth / 1e9:.1f}", f"{row.share:.0%}",
            f"{row.flops / 1e9:.1f}", f"{row.speedup:.2f}",
        )  # fmt: skip
        previous = row.direction
    return view


def case(row: Row) -> str:
    """Options, shape and dtype of a row as text: ``order=2 B4-T2048-C512 float32``."""
    options = " ".join(f"{name}={value}" for name, value in row.options.items())
    sizes = "-".join(f"{name}{value}" for name, value in row.sizes.items())
    return f"{options} {sizes} {row.dtype}".strip()


def data(rows: Sequence[Row], environment: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, in SI units."""
    derived = lambda r: {"bandwidth": r.bandwidth, "share": r.share, "flops_rate": r.flops}
    return {"environment": environment, "rows": [dataclasses.asdict(row) | derived(row) for row in rows]}


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Milliseconds over T, one panel a pass, both axes logarithmic; the format is the suffix of `path`."""
    # The object interface: pyplot would choose a backend and keep every figure.
    from matplotlib.figure import Figure

    passes = list(dict.fromkeys(row.direction for row in rows))
    cases = list(dict.fromkeys(tuple(row.options.items()) for row in rows))
    figure = Figure(figsize=(5.5 * len(passes), 4.2 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), len(passes), squeeze=False)
    for line, options in zip(panels, cases, strict=True):
        for panel, direction in zip(line, passes, strict=True):
            shown = [row for row in rows if row.direction == direction and tuple(row.options.items()) == options]
            for contender in dict.fromkeys(row.contender for row in shown):
                points = sorted((row.sizes["T"], row.seconds) for row in shown if row.contender == contender)
                colour, mark = STYLE.get(contender, OTHER)
                lengths, times = [p[0] for p in points], [p[1] for p in points]
                panel.plot(lengths, [t.median * 1e3 for t in times], color=colour, marker=mark, label=contender)
                panel.fill_between(lengths, [t.low * 1e3 for t in times], [t.high * 1e3 for t in times], color=colour, alpha=0.15)
            floor = sorted((row.sizes["T"], row.work.elements * row.itemsize / row.copy_bandwidth * 1e3) for row in shown)
            panel.plot(*zip(*dict.fromkeys(floor), strict=True), color="black", linestyle=":", label="memory floor")
            panel.set(
                xscale="log",
                yscale="log",
                xlabel="T",
                ylabel="ms",
                title=" ".join([direction, *(f"{k}={v}" for k, v in options)]),
            )
            panel.set_xticks(
                sorted({row.sizes["T"] for row in shown}), labels=[str(t) for t in sorted({row.sizes["T"] for row in shown})]
            )
            panel.minorticks_off()
            panel.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
