"""Convolutions on tensor cores: for each channel a product of a Toeplitz matrix, made of the taps, with the signal cut into rows.

Results p = p0 + m n + i of a block are a matrix with rows i and columns n.  With q = p0 + m n + w, r = sign (w - i) knows no n::

    y[i, n] = sum_w A[i, w] B[w, n]        A[i, w] = taps[sign (w - i)]        B[w, n] = signal[p0 + m n + w]

    block    m x N neighbouring results of `channels` neighbouring channels, all of w in spans
      warp     one channel; accumulators in registers (mma.m16n8k16)

Nothing is stored twice but taps, once as they are and once moved by one element, so that every pair of neighbours is an aligned word
in one of the two: a fragment of A is a few such words, and blocks of A on one diagonal share them.  The signal is a ring of rows
of m elements in shared memory, of which ldmatrix takes any N neighbouring rows as B; the next span brings the next rows only.
Channels are neighbours in memory and apart in shared memory: loads are contiguous, and are transposed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from tilegen.errors import PlanError
from tilegen.expression.walkers import conjunction, const_int, substitute
from tilegen.plan import stages
from tilegen.plan.convolutions import convolution
from tilegen.plan.evaluate import Evaluator, MathRule
from tilegen.plan.gpu.contract import PTX
from tilegen.plan.gpu.func import WARP, Buffers, Decisions, barrier, launch, name
from tilegen.plan.gpu.lanes import Element, Vectors, product, registers, store, unravel
from tilegen.plan.gpu.shared import Arena, Shared, place
from tilegen.plan.gpu.values import rounded
from tilegen.plan.keep import keep
from tilegen.plan.kernel import Kernel
from tilegen.schedules.rule import Gpu

BLOCK = 16
"""Rows of a block of the tensor cores, and what it contracts at once."""

SKEW = 8
"""Elements between rows of the signal: eight rows of 16 bytes each lie in different banks."""

BATCH = 2
"""Vectors of a thread whose loads are under way together."""

WIDTHS = (8, 4, 2, 1)
"""Channels that a thread loads at once."""


class Toeplitz:
    """One convolution being emitted; decisions: rows m, columns N, span (elements of w between barriers), channels."""

    def __init__(self, kernel: Kernel, buffers: Buffers, decisions: Decisions, gpu: Gpu, math: MathRule):
        found = convolution(kernel)
        narrow = next((str(t.dtype) for t in buffers if str(t.dtype) in PTX), None)
        if found is None or narrow is None:
            raise PlanError(f"kernel '{kernel.name}' is no convolution of narrow floats; choose another rule")
        self.kernel, self.buffers, self.math, self.found, self.narrow = kernel, buffers, math, found, narrow
        self.rows, self.columns, self.span, self.channels = (int(decisions[k]) for k in ("rows", "columns", "span", "channels"))
        self.threads = WARP * self.channels
        extent = const_int(kernel.space[-1])
        if extent is None or self.span % self.rows:
            raise PlanError(
                f"kernel '{kernel.name}': spans of {self.span} have no whole rows of {self.rows}, or channels are not static"
            )
        self.extent = extent
        self.width = next(w for w in WIDTHS if w <= self.channels and extent % w == 0)
        self.axes, self.over = stages.axes(found.sum), [axis.var for axis in stages.reduce_axes(found.sum)]
        self.steps = self.span // self.rows
        self.ring = self.columns - 1 + self.steps
        self.pitch = self.rows + SKEW
        taps = self.span + self.rows
        self.copy = taps + (32 - taps) % 64  # the two copies lie half of the banks apart
        self.signal = Shared("signal", (self.channels * self.ring * self.pitch,), narrow, 0, 1)
        self.taps = Shared("taps", (self.channels * 2 * self.copy,), narrow, 0, 1)
        self.sums = Shared("sums", (self.rows * self.columns * (self.channels + 1),), "float32", 2, 2)
        self.nbytes = place([self.signal, self.taps, self.sums])
        if self.nbytes > gpu.shared_bytes:
            raise PlanError(
                f"kernel '{kernel.name}' needs {self.nbytes} bytes of shared memory, a block has {gpu.shared_bytes}; choose fewer columns"
            )

    def emit(self) -> None:
        """The kernel."""
        kernel, axis, tile = self.kernel, self.found.axis, self.rows * self.columns
        lead = [n for k, n in enumerate(kernel.space[:-1]) if k != axis]
        tiles = tirx.floordiv(kernel.space[axis] + (tile - 1), tile)
        across = -(-self.extent // self.channels)
        with launch([product([*lead, tiles, across])], self.threads) as ((block,), thread):
            self.thread, self.lane = thread, name("lane", T.Bind(tirx.truncmod(thread, WARP)))
            *at, number = unravel(tirx.truncdiv(block, across), [*lead, tiles])
            self.first_result = name("p0", T.Bind(keep(number * tile)))
            self.lead = [name(f"b{k}", T.Bind(keep(index))) for k, index in enumerate(at)]
            self.ranges = list(zip(self.lead, lead, strict=True))
            first = tirx.truncmod(block, across) * self.channels + self._vector() * self.width
            self.fits = name("fits", T.Bind(first < self.extent)) if self.extent % self.channels else None
            self.first = name("first", T.Bind(tirx.min(first, self.extent - self.width) if self.fits is not None else first))
            self.ranges.append((self.first, kernel.space[-1]))
            self.arena = Arena(self.nbytes)
            self.arena.open([self.signal, self.taps, self.sums])
            words = self.taps.nbytes // 4
            self.words = T.decl_buffer(
                [words], "uint32", data=self.arena.base.data, elem_offset=self.taps.offset // 4, scope="shared.dyn"
            )
            count = self.rows // BLOCK * (self.columns // 8) * 4
            self.into = registers("sum", [count], "float32")
            with T.unroll(0, count) as k:
                T.buffer_store(self.into, tirx.const(0, "float32"), [k])
            with self._others() as others:
                self._spans(others)
            self._exchange()
            self._write()

    # ---------------------------------------------------------------- places

    def _vector(self) -> Any:
        """Which of a block's vectors of channels is the thread's."""
        return tirx.truncmod(self.thread, self.channels // self.width)

    @contextmanager
    def _others(self) -> Iterator[dict[Any, Any]]:
        """The loop over reduced axes that are summed as they are: each with its element."""
        axes = [a for k, a in enumerate(stages.reduce_axes(self.found.sum)) if k != self.found.over]
        with ExitStack() as stack:
            found: list[Any] = []
            if axes:
                number = stack.enter_context(T.serial(0, product([a.dom.extent for a in axes])))
                at = unravel(number, [a.dom.extent for a in axes])
                found = [name(f"r{k}", T.Bind(keep(index))) for k, index in enumerate(at)]
                self.ranges += [(var, a.dom.extent) for var, a in zip(found, axes, strict=True)]
            yield {a.var: var for a, var in zip(axes, found, strict=True)}

    def _point(self, position: Any, lane: int) -> list[Any]:
        """A point of the space: the block's own, with `position` along the convolution's axis."""
        found = [*self.lead, self.first + lane if lane else self.first]
        found.insert(self.found.axis, position)
        return found

    def _limits(self) -> tuple[Any, Any]:
        """The first w, a multiple of m, and the one behind the last."""
        m, found, over = self.rows, self.found, self.over_extent
        down = lambda x: tirx.floordiv(x, m) * m
        low, high = (tirx.const(0, "int32"), over + (m - 1)) if found.sign > 0 else (down(1 - over), tirx.const(m, "int32"))
        if found.lower is not None:
            low = tirx.max(low, down(found.lower - self.first_result - m * (self.columns - 1)))
        if found.upper is not None:
            high = tirx.min(high, found.upper - self.first_result)
        return name("w_first", T.Bind(keep(low))), name("w_end", T.Bind(keep(high)))

    @property
    def over_extent(self) -> Any:
        """The extent of r."""
        return stages.reduce_axes(self.found.sum)[self.found.over].dom.extent

    # ---------------------------------------------------------------- loads

    def _fill(self, count: Any, value: Callable[[Any, int, Vectors], Any], put: Callable[[Any, int, Any], None]) -> None:
        """Compute ``value(position, lane, memory)`` of all channels at `count` positions and `put` it into shared memory."""
        together = self.threads // (self.channels // self.width)
        each = BATCH if const_int(count) is None or const_int(count) > together else 1
        own = tirx.truncdiv(self.thread, self.channels // self.width)
        with T.serial(0, tirx.floordiv(count + (together * each - 1), together * each)) as turn:
            held, places = [], []
            for k in range(each):
                position = name("position", T.Bind(keep((turn * each + k) * together + own)))
                memory = Vectors(self.buffers, self.first, self.width, self.ranges)
                kept = registers("held", [self.width], self.narrow)
                for lane in range(self.width):
                    T.buffer_store(kept, rounded(value(position, lane, memory), self.narrow), [lane])
                held.append(kept)
                places.append(position)
            for kept, position in zip(held, places, strict=True):
                with T.If(position < count), T.Then():
                    for lane in range(self.width):
                        put(position, self._vector() * self.width + lane, kept[lane])

    def _term(
        self, factors: Sequence[Any], conditions: Sequence[Any], at: Mapping[Any, Any], position: Any, lane: int, memory: Any
    ) -> Any:
        """The product of `factors` under `conditions` with variables replaced by `at`."""
        point = self._point(position, lane)
        mapping = dict(zip(self.axes, point, strict=True)) | dict(at)
        expr = factors[0]
        for factor in factors[1:]:
            expr = expr * factor
        guard = conjunction(conditions)
        if guard is not None:
            expr = tirx.if_then_else(guard, expr, tirx.const(0, str(expr.ty.dtype)))
        return Evaluator(self.kernel, memory, self.math, point, None, {}).expression(substitute(expr, mapping))

    def _fill_signal(self, first: Any, slot: Any, rows: Any, others: Mapping[Any, Any]) -> None:
        """`rows` rows of the signal from element `first` on, from place `slot` of the ring on."""
        found = self.found

        def value(position: Any, lane: int, memory: Any) -> Any:
            q = first + position
            return self._term(found.signal, found.conditions, {found.at: q} | dict(others), q, lane, memory)

        def put(position: Any, channel: Any, value: Any) -> None:
            row = self._wrapped(slot + tirx.truncdiv(position, self.rows))
            place_ = (channel * self.ring + row) * self.pitch + tirx.truncmod(position, self.rows)
            T.buffer_store(self.signal.buffer, value, [place_])

        self._fill(rows * self.rows, value, put)

    def _fill_taps(self, first: Any, rows: Any, others: Mapping[Any, Any]) -> None:
        """The taps of `rows` rows of w from difference `first` of w and i on, twice; those that do not exist are 0."""
        found, extent = self.found, self.over_extent

        def value(position: Any, lane: int, memory: Any) -> Any:
            r = (first + position) * found.sign
            exists = [r >= 0, r < extent]
            return self._term(found.taps, exists, {self.over[found.over]: r} | dict(others), r, lane, memory)

        def put(position: Any, channel: Any, value: Any) -> None:
            at = channel * (2 * self.copy) + position
            T.buffer_store(self.taps.buffer, value, [at])
            with T.If(position > 0), T.Then():
                T.buffer_store(self.taps.buffer, value, [at + (self.copy - 1)])

        self._fill((rows + 1) * self.rows, value, put)

    def _wrapped(self, slot: Any) -> Any:
        """A place of the ring that is less than one round too far."""
        return tirx.Select(slot >= self.ring, slot - self.ring, slot)

    # ---------------------------------------------------------------- products

    def _spans(self, others: Mapping[Any, Any]) -> None:
        """All of w, span by span."""
        low, high = self._limits()
        count = tirx.max(tirx.floordiv(high - low + (self.span - 1), self.span), 0)
        start = name("q0", T.Bind(self.first_result + low))
        barrier()
        self._fill_signal(start, tirx.const(0, "int32"), self.columns - 1, others)
        with T.serial(0, count) as turn:
            w = name("w", T.Bind(keep(low + turn * self.span)))
            base = name("base", T.Bind(tirx.truncmod(turn * self.steps, self.ring)))
            barrier()
            ahead = (self.columns - 1) * self.rows
            slot = name("slot", T.Bind(self._wrapped(base + (self.columns - 1))))
            left = tirx.min(tirx.floordiv(high - w + (self.rows - 1), self.rows), self.steps)
            left = name("left", T.Bind(keep(left)))
            self._fill_signal(self.first_result + w + ahead, slot, left, others)
            self._fill_taps(w - self.rows, left, others)
            barrier()
            with T.serial(0, left) as step:
                self._rows(w + step * self.rows, base, step)

    def _rows(self, w: Any, base: Any, step: Any) -> None:
        """Contract m elements, from `w` on, with rows `base` + `step` and on of the ring."""
        m, blocks, lane = self.rows, self.rows // BLOCK, self.lane
        warp = tirx.truncdiv(self.thread, WARP)
        group, pair = tirx.truncdiv(lane, 4), tirx.truncmod(lane, 4)
        odd = tirx.truncmod(group, 2)
        # Element w - i of the taps for row `group` and column 2 `pair` of a fragment; odd ones are even in the second copy.
        taps = name("tap", T.Bind(warp * (2 * self.copy) + odd * self.copy + m + pair * 2 - group - odd + step * m))
        matrix, line = tirx.truncdiv(lane, 8), tirx.truncmod(lane, 8)
        pairs = self.columns // BLOCK
        rows = []
        for n in range(pairs):
            slot = self._wrapped(base + step + (n * BLOCK + tirx.truncdiv(matrix, 2) * 8 + line))
            rows.append(name("row", T.Bind((warp * self.ring + slot) * self.pitch + tirx.truncmod(matrix, 2) * 8)))
        steps = m // BLOCK
        # Blocks of A with the same w - i are equal: those of all rows and steps are as many as there are diagonals.
        diagonals = blocks + steps - 1
        a = registers("left", [4 * diagonals], "uint32")
        b = registers("right", [8], self.narrow)
        for d in range(diagonals):
            for part, shift in enumerate((0, -8, 8, 0)):  # rows 0 and 8 at columns 0, then at columns 8
                at = taps + (BLOCK * (steps - 1 - d) + shift)
                T.buffer_store(a, self.words[(tirx.truncdiv(at, 2),)], [4 * d + part])
        for n in range(pairs):
            with self._seen(w, m, n):
                for k in range(steps):
                    pointer = self.signal.buffer.access_ptr("r", offset=rows[n] + k * BLOCK)
                    T.evaluate(T.ptx_legacy.ldmatrix(False, 4, ".b16", b.data, 0, pointer, 0, dtype=self.narrow))
                    for i in range(blocks):
                        for half in range(2):
                            at = (i * 2 * pairs + 2 * n + half) * 4
                            self._multiply(a, 4 * (i + steps - 1 - k), b, 4 * half, at)

    def _multiply(self, a: Any, at_a: int, b: Any, at_b: int, at: int) -> None:
        """One instruction of the tensor cores."""
        dtype = PTX[self.narrow]
        T.evaluate(
            T.ptx_legacy.mma(
                "m16n8k16", "row", "col", dtype, dtype, "fp32",
                a.data, at_a, b.data, at_b, self.into.data, at, False, dtype="float32",
            )
        )  # fmt: skip

    @contextmanager
    def _seen(self, w: Any, count: int, n: int) -> Iterator[None]:
        """Nothing for a pair of column blocks that has no results, or takes zeros alone; the same for a whole block of threads."""
        results = self.first_result + self.rows * BLOCK * n
        first, seen = results + w, [results < self.kernel.space[self.found.axis]]
        if self.found.lower is not None:
            seen.append(first + (self.rows * (BLOCK - 1) + count) > self.found.lower)
        if self.found.upper is not None:
            seen.append(first < self.found.upper)
        with ExitStack() as stack:
            stack.enter_context(T.If(conjunction(seen)))
            stack.enter_context(T.Then())
            yield

    # ---------------------------------------------------------------- results

    def _exchange(self) -> None:
        """Sums from the warps' registers to shared memory, where channels are neighbours again."""
        barrier()
        warp, across = tirx.truncdiv(self.thread, WARP), self.columns // 8
        group, pair = tirx.truncdiv(self.lane, 4), tirx.truncmod(self.lane, 4)
        blocks = self.rows // BLOCK
        with T.unroll(0, blocks) as i, T.unroll(0, across) as n, T.unroll(0, 2) as down, T.unroll(0, 2) as side:
            position = (n * 8 + pair * 2 + side) * self.rows + i * BLOCK + down * 8 + group
            value = self.into[((i * across + n) * 4 + down * 2 + side,)]
            T.buffer_store(self.sums.buffer, value, [position * (self.channels + 1) + warp])
        barrier()

    def _write(self) -> None:
        """The results, by vectors of channels."""
        together, kernel = self.threads // (self.channels // self.width), self.kernel
        own = tirx.truncdiv(self.thread, self.channels // self.width)
        with T.serial(0, self.rows * self.columns // together) as turn:
            position = name("position", T.Bind(turn * together + own))
            p = name("p", T.Bind(keep(self.first_result + position)))
            inside = [p < kernel.space[self.found.axis], *([self.fits] if self.fits is not None else [])]
            with T.If(conjunction(inside)), T.Then():
                held = registers("total", [self.width], "float32")
                for lane in range(self.width):
                    at = position * (self.channels + 1) + self._vector() * self.width + lane
                    T.buffer_store(held, self.sums.buffer[(at,)], [lane])
                self._results(p, held)

    def _results(self, p: Any, held: Any) -> None:
        kernel = self.kernel
        memory = Vectors(self.buffers, self.first, self.width, [*self.ranges, (p, kernel.space[self.found.axis])])
        out = [registers(f"out{k}", [self.width], str(final.dtype)) for k, final in enumerate(kernel.finals)]
        for lane in range(self.width):
            states: dict[te.Tensor, Any] = {self.found.sum: Element(lambda _, lane=lane: held[lane])}
            values = Evaluator(kernel, memory, self.math, self._point(p, lane), None, states)
            values.open_states()
            for final, buffer in zip(kernel.finals, out, strict=True):
                T.buffer_store(buffer, values.at_end(final, {}), [lane])
        lead = self._point(p, 0)[:-1]
        for final, buffer in zip(kernel.finals, out, strict=True):
            store(self.buffers[final], buffer, lead, self.first, self.width)
