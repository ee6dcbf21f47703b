"""What the tuner is asked to search: a kernel, its space, and how to tell a right output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilegen.tune.case import Argument, normal_inputs
from tilegen.tune.gate import Array
from tilegen.tune.records import RecordKey

Inputs = Callable[[Sequence[Argument], Mapping[str, int], int], dict[str, Array]]
Reference = Callable[[dict[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Task:
    """One kernel to search.

    Parameters
    ----------
    key : what the record will be filed under.
    mod : module with one function "main" at the representative sizes; its loops are what the cost model sees.
    symbolic : the same with symbolic sizes, which is what users run: candidates are built from it, timed at `sizes` and
        checked at `ragged` too.  None when the kernel has no symbolic size.
    rule : the schedule rule, see `tilegen.tune.space`.
    reference : float64 outputs by name from inputs by name (in their own dtype); None when there is no such thing: the
        unscheduled kernel is the reference then.
    sizes, ragged : values of the symbolic sizes by name.
    inputs : makes the inputs from the arguments, the sizes and a seed; standard normal numbers unless given.
    plain : the same formula as `symbolic` without approximations, which is what the gates allow a multiple of the error of;
        None: `symbolic` itself, unscheduled.
    flops : operations of one call at `sizes`, for the display; None: unknown.
    build : ``"module:function"`` called in a worker as ``build(module_json, target_json, path)``; writes the library.
    """

    key: RecordKey
    mod: Any
    symbolic: Any | None
    rule: Callable[[Any], None]
    reference: Reference | None
    sizes: dict[str, int]
    ragged: dict[str, int]
    inputs: Inputs = normal_inputs
    plain: Any | None = None
    flops: float | None = None
    build: str = "tilegen.tune.builder:build"

    @property
    def name(self) -> str:
        """ "op function.kernel", for people."""
        return f"{self.key.op} {self.key.function}.{self.key.kernel}"

    @property
    def unscheduled(self) -> Any:
        """The module whose error sets the gates' limits."""
        return next(mod for mod in (self.plain, self.symbolic, self.mod) if mod is not None)

    def arguments(self, sizes: Mapping[str, int]) -> list[Argument]:
        """The kernel's buffers at these sizes."""
        from tilegen.tune.builder import arguments

        return arguments(self.mod if self.symbolic is None else self.symbolic, sizes)
