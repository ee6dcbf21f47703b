"""How the threads of a block hold a two-dimensional tile in registers.

A layout gives every thread the same number of elements, in three register dims: blocks of rows, blocks of columns, elements
of a block.  `place` says which row and column an element is, as an expression of the thread; a row is held by the lanes that
differ in `row_lanes` bits, which meet by shuffles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tilegen.plan.gpu.func import WARP

PAD = 16
"""Extents of tiles in registers and of operands in shared memory are rounded up to this."""
TF32 = "tf32"
"""What operands in float32 are rounded to for tensor cores, where that is allowed."""


def padded(extent: int) -> int:
    """`extent` rounded up to whole blocks."""
    return -(-extent // PAD) * PAD


@dataclass(frozen=True)
class Layout:
    """A tile of `rows` x `columns` held by `warps` warps.

    Parameters
    ----------
    rows, columns : extents without padding.
    down, across : warps along the rows and along the columns.
    tensor : whether it is the accumulator of the tensor cores' 16 x 8 blocks (PTX ISA, mma.m16n8k16), else threads in a grid.
    slant : of a band (see `tilegen.plan.gpu.band`): which column a warp's first is, counted from its first row, and how many it holds.
    """

    rows: int
    columns: int
    down: int
    across: int
    tensor: bool
    slant: tuple[int, int] | None = None
    turned: bool = False

    @property
    def extents(self) -> tuple[int, int]:
        """The rows and columns that are held by some warp, padding included."""
        step = (PAD * self.down, PAD * self.across) if self.tensor else self._grid
        return -(-self.rows // step[0]) * step[0], -(-self.columns // step[1]) * step[1]

    @property
    def exact(self) -> bool:
        """Whether nothing is padding."""
        return self.extents == (self.rows, self.columns)

    @property
    def warps(self) -> int:
        """Warps that hold the tile."""
        return self.down * self.across

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Registers of a thread: (blocks down, blocks across, rows of a block, columns of a block)."""
        rows, columns = self.extents
        if self.slant is not None:
            columns = self.slant[1]
        if self.tensor:
            return rows // (PAD * self.down), columns // (8 * self.across), 2, 2
        return rows // self._grid[0], columns // self._grid[1], 1, 1

    @property
    def size(self) -> int:
        """Registers of a thread."""
        a, b, c, d = self.dims
        return a * b * c * d

    @property
    def loads(self) -> int:
        """Rows and columns of the operands of a product that the warps load for it, one contracted element."""
        return padded(self.rows) * self.across + padded(self.columns) * self.down

    @property
    def row_size(self) -> int:
        """Rows of which a thread holds elements."""
        return self.dims[0] * self.dims[2]

    @property
    def row_lanes(self) -> tuple[int, ...]:
        """Masks of the exchanges after which all lanes that hold a row know what each of them knew."""
        return (1, 2) if self.tensor else (1, 2, 4, 8)

    @property
    def _grid(self) -> tuple[int, int]:
        """Threads (down, across) of a layout without tensor cores: half a warp lies along a row."""
        return self.warps * WARP // PAD, PAD

    def register(self, at: tuple[Any, Any, Any, Any]) -> Any:
        """The index of the register at register dims `at`."""
        _, b, c, d = self.dims
        return ((at[0] * b + at[1]) * c + at[2]) * d + at[3]

    def row_register(self, at: tuple[Any, Any, Any, Any]) -> Any:
        """The index of the register that holds something of the row of `at`."""
        return at[0] * self.dims[2] + at[2]

    def place(self, thread: Any, at: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
        """(row, column) of the element at register dims `at`."""
        if not self.tensor:
            down, across = self._grid
            return at[0] * down + tirx.truncdiv(thread, PAD), at[1] * across + tirx.truncmod(thread, PAD)
        lane = tirx.truncmod(thread, WARP)
        row = self.first_row(thread) + at[0] * PAD + at[2] * 8 + tirx.truncdiv(lane, 4)
        return row, self.first_column(thread) + at[1] * 8 + tirx.truncmod(lane, 4) * 2 + at[3]

    def first_row(self, thread: Any) -> Any:
        """The first row of the thread's warp (tensor cores only)."""
        warp = tirx.truncdiv(thread, WARP)
        return (warp if self.across == 1 else tirx.truncmod(warp, self.down)) * (self.dims[0] * PAD)

    def first_column(self, thread: Any) -> Any:
        """The first column of the thread's warp (tensor cores only)."""
        if self.slant is not None:
            return self.first_row(thread) + self.slant[0]
        if self.across == 1:
            return tirx.const(0, "int32")
        return tirx.truncdiv(tirx.truncdiv(thread, WARP), self.down) * (self.dims[1] * 8)

    def point(self, row: Any, column: Any) -> list[Any]:
        """The element of the stage at a row and column of the layout, or the other way round."""
        return [column, row] if self.turned else [row, column]

    def same_rows(self, other: Layout) -> bool:
        """Whether every thread holds the same rows of the same axis in both."""
        return self.turned == other.turned and self.like_rows(other)

    def like_rows(self, other: Layout) -> bool:
        """Whether every thread holds the same rows in both, whatever the axes."""
        return (self.tensor, self.down, self.across, self.extents[0], self.rows) == (
            other.tensor, other.down, other.across, other.extents[0], other.rows,
        )  # fmt: skip


def layout(rows: int, columns: int, warps: int, tensor: bool, across: int = 1) -> Layout:
    """The layout of a tile over `warps` warps: at least `across` along the columns, and as many as fit along the rows.

    With one along the columns a row stays within a warp; squarer parts of a tile read less of its operands.
    """
    if not tensor:
        return Layout(rows, columns, warps, 1, False)
    down = warps // across
    while down > 1 and (padded(rows) // PAD) % down:
        down //= 2
    return Layout(rows, columns, down, warps // down, True)


def squarer(made: Layout) -> Layout:
    """The layout of a product that loads its operands least often.

    Every warp across loads all rows of the left operand, every warp down all columns of the right one.  Of equals `made` if it has
    one warp across, else the one with most of them, whose left operand serves most products.
    """
    blocks = padded(made.rows) // PAD
    downs = [2**k for k in range(made.warps.bit_length())]
    able = [n for n in downs if blocks % n == 0 and made.columns % (PAD * (made.warps // n)) == 0]
    found = [Layout(made.rows, made.columns, down, made.warps // down, True) for down in able]
    return min([*([made] if made.across == 1 else []), *found], key=lambda other: other.loads, default=made)
