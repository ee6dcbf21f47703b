"""Blocks that are only scopes: inside one, primitives of a schedule reason about nothing outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T


@contextmanager
def scope(name: str) -> Iterator[None]:
    """The scope ``scope_<name>``.

    It says of itself that it reads and writes nothing: no primitive asks, and what TVM would find out instead, the union of all
    regions below, can be megabytes of nested minima that every pass walks through.
    """
    with T.sblock(f"scope_{name}"):
        T.reads([])
        T.writes([])
        yield
