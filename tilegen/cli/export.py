"""``tilegen export OP -o FILE``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tilegen.cli import console
from tilegen.cli.instance import TARGETS, Dtype, Op, Set, Tf32, instance


def command(
    op: Op,
    out: Annotated[Path, typer.Option("--output", "-o", help="File to write (*.tilegen), or a new folder.")],
    set_: Set = None,
    dtype: Dtype = "float32",
    target: Annotated[str | None, typer.Option(help=f"{TARGETS} Several GPUs as sm_80,sm_90.")] = None,
    functions: Annotated[str, typer.Option(help="Which of forward, backward and step it holds.")] = "forward,backward,step",
    tf32: Tf32 = False,
) -> None:
    """Compile an operator into a library that loads without TVM's compiler: `tilegen.runtime.load(FILE)`."""
    from tilegen import bundle

    wanted = tuple(part.strip() for part in functions.split(","))
    found = instance(op, set_, dtype)
    with console.err().status(f"compiling {op}"):
        bundle.export(found, out, target=target, functions=wanted, tf32=tf32)
    manifest, files = bundle.read(out)
    show = console.out()
    symbols = ", ".join(manifest.symbolic)
    static = ", ".join(f"{name}={value}" for name, value in manifest.static.items())
    show.print(f"[bold]{escape(str(out))}[/]: {op} {dtype}, {static}, any {symbols}, for {escape(_target(manifest.target))}")
    for name, entry in manifest.functions.items():
        given, made = (", ".join(a.name for a in args) for args in (entry.given, entry.returned))
        show.print(f"  {name}({given}) -> {made}", markup=False)
    if kernels := [one for made in manifest.provenance for one in made.get("compiled", ())]:
        registers = max(one["registers"] for one in kernels)
        spilled = sorted({one["kernel"] for one in kernels if one["spill_stores"]})
        spills = f"[yellow]spills in {', '.join(spilled)}[/]" if spilled else "no spills"
        show.print(f"  {len({one['kernel'] for one in kernels})} kernels of at most {registers} registers a thread, {spills}")
    show.print(f"  {sum(map(len, files.values())) / 1024:.0f} KiB in {', '.join(sorted(files))}; sha256 of each in the manifest")


def _target(target: dict) -> str:
    if target.get("kind") == "cuda":
        products = f", products in {target['products'].upper()}" if "products" in target else ""
        return f"{' and '.join(target['archs'])} ({target.get('host')}){products}"
    return f"{target.get('mcpu', target.get('kind'))} ({target.get('arch')})"
