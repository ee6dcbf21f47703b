"""The compiled functions of an instance, emulated: arguments by name, everything they write poisoned before."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.cuda.emulator.module import EmulatedError, EmulatedModule, aligned
from tilegen.build import cuda
from tilegen.build.library import scheduled_parts
from tilegen.build.target import BuildTarget, resolve
from tilegen.bundle import shapes
from tilegen.bundle.manifest import Argument, EntryPoint
from tilegen.mechanisms import Instance

TARGET = "sm_90"


class EmulatedInstance:
    """What a bundle of `instance` for `target` would hold, run on the CPU.

    Attributes
    ----------
    entries : arguments of each function by name, as in a manifest.
    source : the CUDA text of all of them.
    """

    def __init__(
        self,
        instance: Instance,
        functions: Sequence[str],
        target: str | BuildTarget = TARGET,
        wide: bool = False,
        tf32: bool = False,
    ) -> None:
        chosen = resolve(target, wide=wide, tf32=tf32) if isinstance(target, str) else target
        parts = scheduled_parts(instance, tuple(functions), chosen)
        self.instance, self.entries = instance, parts.entries
        self.source = cuda.generate(parts.parts, chosen)
        self.module = EmulatedModule(self.source)

    def run(self, name: str, inputs: Mapping[str, Tensor], orders: Sequence[str] = ("forward",)) -> dict[str, Tensor]:
        """Call a function; see `run_function`."""
        entry = self.entries[name]
        given = {arg.name: _prepared(arg, inputs) for arg in entry.given}
        sizes = self._sizes(entry, given)
        results: dict[str, dict[str, Tensor]] = {}
        for order in orders:
            before = {key: x.clone() for key, x in given.items()}
            fresh = {
                arg.name: aligned([shapes.evaluate(dim, sizes) for dim in arg.shape], getattr(torch, arg.dtype))
                for arg in entry.args
                if arg.name not in given
            }
            both = given | fresh
            names = [arg.name for arg in entry.args]
            self.module[entry.symbol](*(both[key] for key in names), order=order, names=names)
            if changed := [key for key, x in given.items() if not _same(x, before[key])]:
                raise EmulatedError(f"{entry.symbol}, {order} order: writes into its input {', '.join(changed)}")
            results[order] = fresh
        first, *others = results
        for order in others:
            if differing := [key for key, x in results[first].items() if not _same(x, results[order][key])]:
                raise EmulatedError(
                    f"{entry.symbol}: {', '.join(differing)} depends on the order of threads: {first} and {order} differ"
                )
        return results[first]

    def _sizes(self, entry: EntryPoint, given: Mapping[str, Tensor]) -> dict[str, int]:
        named = [(arg.name, arg.shape) for arg in entry.given]
        return shapes.solve(named, [tuple(given[name].shape) for name, _ in named], self.instance.static)


@functools.lru_cache(maxsize=64)
def _emulated(key: str, functions: tuple[str, ...], target: str) -> EmulatedInstance:
    return EmulatedInstance(Instance.from_key(key), functions, target)


def emulated(instance: Instance, functions: Sequence[str], target: str = TARGET) -> EmulatedInstance:
    """The emulated functions of `instance`, planned and compiled once a process."""
    return _emulated(instance.key, tuple(functions), target)


def run_function(
    instance: Instance,
    name: str,
    inputs: Mapping[str, Tensor],
    *,
    orders: Sequence[str] = ("forward", "reverse"),
    target: str = TARGET,
) -> dict[str, Tensor]:
    """Plan, schedule, lower and emulate one function of `instance` for a GPU, and return all that it writes.

    ::

        instance = Instance(mechanism, mechanism.config(), {"D": 16, "E": 16}, "bfloat16")
        made = run_function(instance, "forward", {"q": q, "k": k, "v": v})
        made["o"]                                                  # outputs; saved tensors and workspaces by their names too
        run_function(instance, "backward", {"q": q, "k": k, "v": v, "grad_o": grad} | made)["grad_q"]

    Parameters
    ----------
    name : "forward", "backward" or "step".
    inputs : CPU tensors by the names of the function's arguments; others are ignored.
    orders : which of `tests.cuda.emulator.module.ORDERS` to run in; results must be equal to the bit in all of them.
    target : "sm_80", "sm_90", ...

    Returns
    -------
    dict
        Every tensor that is no input.  All of them were filled with NaN (integers: -1) before.

    Raises
    ------
    EmulatedError
        For races, overruns, misaligned or divergent accesses, a refused launch, inputs that were written into, and results
        that depend on the order of threads.
    """
    return emulated(instance, _together(name), target).run(name, inputs, orders)


def _together(name: str) -> tuple[str, ...]:
    """Forward and backward share what is saved, so they are planned together."""
    return (name,) if name == "step" else ("forward", "backward")


def _prepared(arg: Argument, inputs: Mapping[str, Tensor]) -> Tensor:
    x = inputs[arg.name]
    if x.dtype != getattr(torch, arg.dtype):
        raise ValueError(f"{arg.name} has dtype {x.dtype}, must be {arg.dtype}")
    return aligned(x.shape, x.dtype).copy_(x.detach())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit."""
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
