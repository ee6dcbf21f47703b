"""The report of a tuning call as one HTML page, its plots inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilegen.tune.progress import duration

if TYPE_CHECKING:
    from tilegen.tune.report import SearchResult, TuneReport

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, .text { text-align: left } img { max-width: 100% }
"""

DPI = 110
LEGEND = 12
"""Kernels that are named beside their curves; more of them would hide the curves."""


def write(report: TuneReport, path: Path) -> None:
    """Write `report` to the file `path`."""
    path.write_text(page(report), encoding="utf-8")


def page(report: TuneReport) -> str:
    """The page as text."""
    searched = [r for r in report.results if r.history]
    parts = [
        f"<h1>Tuning on {html.escape(report.device)}</h1>",
        f"<p>{html.escape(report.lines()[-1] if report.lines() else '')}</p>",
    ]
    parts += ["<h2>Before and after</h2>", before_and_after(report.results)]
    if searched:
        parts += ["<h2>Best candidate so far</h2>", _image(best_so_far, searched)]
        parts += ["<p>Time of the best valid candidate relative to the rule's default, by number of trials.</p>"]
    placed = [r for r in searched if r.traffic and report.bandwidth]
    if placed:
        parts += ["<h2>Roofline</h2>", _image(roofline, placed, report.bandwidth)]
        parts += [
            "<p>Operations per byte of arguments, each counted as read or written once; the line is what copying memory "
            f"reaches, {report.bandwidth / 1e9:.0f} GB/s. Hollow: the default.</p>"
        ]
    parts += ["<h2>Rejected candidates</h2>", rejections(report.results)]
    if report.skipped:
        parts += ["<h2>Not searched</h2>", _table(["kernel", "why"], [[name, why] for name, why in report.skipped], text=True)]
    head = f'<meta charset="utf-8"><title>Tuning report</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def before_and_after(results: Sequence[SearchResult]) -> str:
    """The table of kernels."""
    rows = []
    for r in results:
        share = f"{100 * r.traffic / r.seconds / r.bandwidth:.0f} %" if r.traffic and r.bandwidth else ""
        gain = f"{r.gain:.2f}" if r.gain else ""
        random = duration(r.random_seconds) if r.random_seconds else ""
        correlation = f"{r.correlation:.2f}" if r.correlation is not None else ""
        default = duration(r.default_seconds) if r.default_seconds else "not valid"
        chosen = ", ".join(map(str, r.decisions))
        rows.append(
            [
                r.name,
                default,
                duration(r.seconds),
                duration(r.spread),
                gain,
                share,
                f"{r.trials} of {r.space}",
                random,
                correlation,
                chosen,
            ]
        )
    heads = ["kernel", "default", "tuned", "spread", "gain", "of copying", "trials", "random search", "model", "decisions"]
    return _table(heads, rows)


def rejections(results: Sequence[SearchResult]) -> str:
    """What was rejected, by kind, with the first message of each."""
    rows = []
    for r in results:
        for kind, count in r.rejected.items():
            rows.append([r.name, kind, str(count), f"{100 * count / max(r.trials, 1):.0f} %", r.reasons.get(kind, "")[:300]])
    return _table(["kernel", "kind", "candidates", "share", "the first"], rows) if rows else "<p>None.</p>"


def best_so_far(axes: Any, results: Sequence[SearchResult]) -> None:
    """Curves of the best candidate over trials."""
    for r in results:
        scale = r.default_seconds or r.seconds
        axes.step(range(1, len(r.history) + 1), [s / scale for s in r.best_so_far], where="post", label=r.name, linewidth=1.2)
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set(xlabel="trials", ylabel="time / time of the default", xscale="log")
    if len(results) <= LEGEND:
        axes.legend(fontsize=8)


def roofline(axes: Any, results: Sequence[SearchResult], bandwidth: float) -> None:
    """Kernels by operations per byte and operations per second."""
    found = [(r, (r.flops or r.traffic) / r.traffic, r.flops or r.traffic) for r in results]
    ends = [min(x for _, x, _ in found) / 2, max(x for _, x, _ in found) * 2]
    axes.plot(ends, [x * bandwidth / 1e9 for x in ends], color="0.4", linewidth=1)
    for op in dict.fromkeys(r.name.split()[0] for r in results):
        own = [(x, flops, r) for r, x, flops in found if r.name.split()[0] == op]
        (line,) = axes.plot([x for x, _, _ in own], [f / r.seconds / 1e9 for _, f, r in own], "o", label=op, markersize=5)
        old = [(x, f / r.default_seconds / 1e9) for x, f, r in own if r.default_seconds]
        axes.plot([x for x, _ in old], [y for _, y in old], "o", markerfacecolor="none", color=line.get_color(), markersize=5)
    axes.set(xlabel="operations per byte", ylabel="10^9 operations per second", xscale="log", yscale="log")
    axes.legend(fontsize=8)


def _image(draw: Any, *arguments: Any) -> str:
    """A plot as an element of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots(), *arguments)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return (
        f'<img alt="{html.escape(draw.__doc__ or "")}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kind = ' class="text"' if text else ""
        return "<tr>" + "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(heads, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
