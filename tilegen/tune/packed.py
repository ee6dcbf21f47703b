"""Packed sequences to tune with: how many rows and tiles there are, and the tables that say where each sequence lies.

Sequences are of unequal lengths.  Where kernels are compared one by one, each has one row more than whole tiles of every size, so that
all the tiles there is room for exist: a kernel need not write what it would keep of others (see `tilegen.torch.packing`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tilegen.mechanisms import Instance, is_packed, tile_count
from tilegen.tune.gate import Array

SEQUENCES, ROWS = "S", "T"
_TILES = re.compile(r"N(\d+)")
_TABLE = re.compile(r"(starts|ends|owner)_(\d+)")


def sizes_of(instance: Instance, sizes: Mapping[str, int], *, whole: bool) -> dict[str, int]:
    """`sizes` of an instance with packed sequences, with the numbers of its tiles; as they are where it has none.

    `whole` : with as many rows, at most, as make all of these tiles exist.
    """
    if not is_packed(instance.config):
        return dict(sizes)
    lengths, sequences = instance.mechanism.lengths(instance.config), sizes[SEQUENCES]
    longest, rows = max(lengths), max(sizes[ROWS], sizes[SEQUENCES])
    if whole:
        rows = sequences + (rows - sequences) // longest * longest
    tiles = {tile_count(n): (rows + sequences * (n - 1)) // n for n in lengths if n > 1}
    return dict(sizes) | {ROWS: rows} | tiles


def bounds(sizes: Mapping[str, int]) -> list[int]:
    """Where each sequence begins, and the number of rows: the longer the later; the second is empty where tiles need not be whole."""
    count, rows = sizes[SEQUENCES], sizes[ROWS]
    longest = max((int(match[1]) for name in sizes if (match := _TILES.fullmatch(name))), default=1)
    share = [s * (s + 1) / (count * (count + 1)) for s in range(count + 1)]
    if longest > 1 and (rows - count) % longest == 0:
        tiles = (rows - count) // longest
        return [int(part * tiles) * longest + s for s, part in enumerate(share)]
    found = [int(part * rows) for part in share]
    return [*found[:2], found[1], *found[3:]] if count > 2 else found


def table(name: str, sizes: Mapping[str, int]) -> Array | None:
    """The values of the table called `name` (see `tilegen.mechanisms.table_specs`), int32; None where it is none."""
    match = _TABLE.fullmatch(name)
    if match is None or SEQUENCES not in sizes:
        return None
    length, found = int(match[2]), bounds(sizes)
    return tables(found, length)[match[1]]


def tables(found: Sequence[int], length: int) -> dict[str, Any]:
    """The tables of tiles of one length for sequences with these bounds, as `tilegen.torch.packing.tables` makes them."""
    lengths = np.array([end - begin for begin, end in pairwise(found)])
    ends = np.cumsum((lengths + length - 1) // length)
    count = (found[-1] + len(lengths) * (length - 1)) // length
    owner = np.minimum(np.searchsorted(ends, np.arange(count), side="right"), len(lengths) - 1)
    made = {"starts": ends - (lengths + length - 1) // length, "ends": ends, "owner": owner}
    return {role: values.astype(np.int32) for role, values in made.items()}
