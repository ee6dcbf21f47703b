"""One set of arguments for a kernel, in a folder: written once by the tuner, read by every measuring process.

Files are plain bytes beside one JSON description, so that a process that measures needs numpy and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tilegen.tune.gate import Array, Limit, dtype_of
from tilegen.tune.packed import table

GUARD = 4096
"""Bytes before and after every buffer that a kernel must not touch."""

ALIGNMENT = 64
CANARY = 0xA5


@dataclass(frozen=True)
class Argument:
    """One buffer of a kernel at definite sizes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    output: bool


class Buffer:
    """An aligned array between two guard zones."""

    def __init__(self, argument: Argument) -> None:
        self.argument, dtype = argument, dtype_of(argument.dtype)
        size = int(np.prod(argument.shape, dtype=np.int64)) * dtype.itemsize
        self._room = np.full(size + 2 * GUARD + ALIGNMENT, CANARY, np.uint8)
        start = GUARD + -(self._room.ctypes.data + GUARD) % ALIGNMENT
        self._before, self._after = self._room[:start], self._room[start + size :]
        self.bytes = self._room[start : start + size]
        self.guarded = self._room[start : start + size + GUARD]
        """The data and the guard zone behind them."""
        self.before, self.after = self._room[start - GUARD : start], self._room[start + size : start + size + GUARD]
        """The guard zones."""
        self.array: Array = self.bytes.view(dtype).reshape(argument.shape)

    def poison(self, round_: int) -> None:
        """Fill with NaN (integers: a large number), another pattern each round, so that unwritten elements show."""
        self.bytes[...] = (0xFF, 0x7F)[round_ % 2]  # 0xFFFF.. and 0x7F7F.. : NaN, and NaN or a huge number

    def intact(self) -> bool:
        """Whether nobody wrote into the guard zones."""
        return bool((self._before == CANARY).all() and (self._after == CANARY).all())


@dataclass
class Case:
    """Arguments with their values: inputs, and for outputs the float64 reference with its limit.

    `sizes` are the symbolic sizes, for launches whose sizes are computed from them.
    """

    arguments: list[Argument]
    inputs: dict[str, Array]
    references: dict[str, Array]
    limits: dict[str, Limit]
    sizes: dict[str, int] = field(default_factory=dict)

    def buffers(self) -> list[Buffer]:
        """Fresh guarded buffers with the inputs filled in."""
        made = [Buffer(argument) for argument in self.arguments]
        for buffer in made:
            if not buffer.argument.output:
                buffer.array[...] = self.inputs[buffer.argument.name]
        return made

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        described = {
            "arguments": [asdict(argument) for argument in self.arguments],
            "limits": {name: asdict(limit) for name, limit in self.limits.items()},
            "sizes": self.sizes,
        }
        (folder / "case.json").write_text(json.dumps(described))
        for name, array in self.inputs.items():
            array.tofile(folder / f"{name}.input")
        for name, array in self.references.items():
            array.astype(np.float64).tofile(folder / f"{name}.reference")

    @classmethod
    def load(cls, folder: Path) -> Case:
        described = json.loads((folder / "case.json").read_text())
        arguments = [Argument(a["name"], tuple(a["shape"]), a["dtype"], a["output"]) for a in described["arguments"]]
        inputs, references = {}, {}
        for a in arguments:
            if not a.output:
                inputs[a.name] = np.fromfile(folder / f"{a.name}.input", dtype_of(a.dtype)).reshape(a.shape)
            elif (folder / f"{a.name}.reference").exists():
                references[a.name] = np.fromfile(folder / f"{a.name}.reference", np.float64).reshape(a.shape)
        limits = {name: Limit(**limit) for name, limit in described["limits"].items()}
        return cls(arguments, inputs, references, limits, described["sizes"])


def normal_inputs(arguments: Sequence[Argument], sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Standard normal numbers for every floating input, the same in every process for one `seed`.

    Integers are 0 or 1, those in a vector see `places` and `tilegen.tune.packed.table`.
    """
    made: dict[str, Array] = {}
    for position, a in enumerate(arguments):
        if a.output:
            continue
        rng = np.random.default_rng([seed, position])
        floating = a.dtype.startswith(("float", "bfloat"))
        values = rng.standard_normal(a.shape) if floating else rng.integers(0, 2, a.shape)
        if len(a.shape) == 1 and a.dtype.startswith(("int", "uint")):
            bounds = table(a.name, sizes)
            values = places(a.shape[0], sizes) if bounds is None else bounds
        made[a.name] = values.astype(np.float32 if a.dtype == "bfloat16" else np.float64).astype(dtype_of(a.dtype))
    return made


def places(count: int, sizes: Mapping[str, int]) -> Array:
    """A vector of integers: where sequences begin, or how long they are, at equal distances; one alone counts most of the rows."""
    rows = max(sizes.values(), default=1)
    return np.arange(count) * rows // count if count > 1 else np.array([max(1, 2 * rows // 3)])


def traffic(arguments: Sequence[Argument]) -> int:
    """Bytes when every argument is read or written once."""
    return sum(int(np.prod(a.shape, dtype=np.int64)) * dtype_of(a.dtype).itemsize for a in arguments)
