"""Shapes written as text turned into one function, for ints and for torch's symbolic ints alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilegen.bundle import shapes as text
from tilegen.errors import BundleError

Shapes = tuple[tuple[int, ...], ...]


def shapes_function(shapes: Sequence[text.Shape], sizes: Sequence[str]) -> Callable[..., Shapes]:
    """A function of the sizes, in this order, that gives all `shapes` at once.

    Generated source, because it runs in every call of an operator: walking the trees would take longer than a small kernel.
    `text.names` parses every dim first and refuses whatever is not arithmetic on integers and names.
    """
    unknown = {name for shape in shapes for dim in shape for name in text.names(dim)} - set(sizes)
    if unknown:
        raise BundleError(f"a shape needs the size {min(unknown)!r}, known are {', '.join(sizes) or 'none'}; build it again")
    rows = ["(" + "".join(f"{dim}," for dim in shape) + ")" for shape in shapes]
    source = f"lambda {', '.join(sizes)}: (" + "".join(f"{row}," for row in rows) + ")"
    function: Callable[..., Any] = eval(compile(source, "<shapes>", "eval"), {"__builtins__": {}})
    return function


def first_uses(shapes: Sequence[text.Shape], sizes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where each size stands alone, as (tensor, dim); a size that does so nowhere is left out."""
    places = {
        name: [(i, d) for i, shape in enumerate(shapes) for d, dim in enumerate(shape) if dim == name] for name in sizes
    }
    return {name: found[0] for name, found in places.items() if found}
