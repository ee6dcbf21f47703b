"""One compiled function: what it takes, what it returns, and the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilegen.bundle import shapes
from tilegen.bundle.manifest import LIMIT, Argument, EntryPoint
from tilegen.errors import ArgumentError, TargetError
from tilegen.runtime import tensors
from tilegen.runtime.tensors import Library

_LAUNCH = "CUDA launch: "  # how every message of a launcher's CUDA calls begins
_PLANS = 512  # signatures remembered


class Function:
    """A compiled function with its arguments.

    ``function(*given)`` checks, allocates and returns.  `call` is the bare foreign call, for callers that did all of that.

    Attributes
    ----------
    name : "forward", "backward" or "step".
    args : every argument in call order.
    given : those that the caller passes.
    returned : those that a checked call returns.
    """

    def __init__(
        self, name: str, entry: EntryPoint, static: dict[str, int], device: str, foreign: Callable[..., Any], wide: bool = False
    ) -> None:
        self.name = name
        self._limit = math.inf if wide else LIMIT
        self.args: tuple[Argument, ...] = entry.args
        self.given, self.returned = entry.given, entry.returned
        self._static, self._device, self._foreign = static, device, foreign
        self._plans: dict[Any, list[tuple[tuple[int, ...], str]]] = {}
        # Where each argument of the call comes from: the position among the given ones, or None for a new tensor.
        order = {arg.name: i for i, arg in enumerate(self.given)}
        self._sources = [order.get(arg.name) for arg in self.args]
        self._results = [self.args.index(arg) for arg in self.returned]

    def symbols(self, given: Sequence[Any]) -> dict[str, int]:
        """The symbolic sizes of a call with these tensors; raises `ArgumentError` when their shapes do not fit."""
        sizes = self._solve([tuple(x.shape) for x in given])
        return {name: size for name, size in sizes.items() if name not in self._static}

    def allocations(self, sizes: dict[str, int]) -> list[tuple[Argument, tuple[int, ...]]]:
        """Every argument with its shape at these symbolic sizes, in call order.

        Raises
        ------
        ArgumentError
            When an argument would have 2**31 elements or more, which only libraries compiled for that take.
        """
        known = self._static | sizes
        found = [(arg, tuple(shapes.evaluate(dim, known) for dim in arg.shape)) for arg in self.args]
        for arg, shape in found:
            if math.prod(shape) >= self._limit:
                raise ArgumentError(
                    f"{arg.name} ({arg.role} of {self.name}) has shape {list(shape)}, {math.prod(shape)} elements, must be below "
                    "2**31; split the batch"
                )
        return found

    def call(self, arguments: Sequence[Any]) -> None:
        """Call with all of `args`, in that order.

        Nothing is checked that the library does not check: every tensor must be contiguous, start at a multiple of 64 bytes (of
        16 on a GPU) and lie on the bundle's device.  On a GPU the call launches all kernels on the current stream and returns;
        of torch tensors that is torch's current stream.

        Raises
        ------
        ArgumentError
            When the library refuses an argument; it checks number, shapes and dtypes.
        TargetError
            When the GPU refuses a launch.
        """
        try:
            self._foreign(*arguments)
        except Exception as error:
            if _LAUNCH in str(error):
                raise TargetError(f"{self.name} could not start on the GPU: {error}") from error
            raise ArgumentError(f"{self.name} refused its arguments: {error}") from error

    def __call__(self, *given: Any) -> Any:
        """Check `given`, allocate all results, call, and return the results.

        Parameters
        ----------
        given : torch tensors or numpy arrays, as `Function.given` lists them.  Tensors that are not contiguous or not aligned
            to 64 bytes (16 on a GPU) are copied.

        Returns
        -------
        One tensor or a tuple of tensors, of the same library and on the same device.  They are not connected to torch's
        autograd: for that use the operators in `tilegen.ops`.

        Raises
        ------
        ArgumentError
            When the number, kind, dtype, device or shape of the arguments is wrong; the message names the argument.
        """
        library = tensors.library_of(given)
        if library is None or len(given) != len(self.given):
            raise self._refused(given)
        signature = library.signature(given)
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._plan(library, given)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[signature] = plan
        device = library.device(given[0])
        arguments = [
            library.empty(*form, device) if source is None else library.prepared(given[source])
            for source, form in zip(self._sources, plan, strict=True)
        ]
        self.call([library.passed(x) for x in arguments])
        results = [arguments[i] for i in self._results]
        return results[0] if len(results) == 1 else tuple(results)

    def __repr__(self) -> str:
        text = [f"{arg.name}: {arg.dtype}[{', '.join(map(str, arg.shape))}]" for arg in self.given]
        return f"{self.name}({', '.join(text)}) -> {', '.join(arg.name for arg in self.returned)}"

    def _plan(self, library: Library, given: Sequence[Any]) -> list[tuple[tuple[int, ...], str]]:
        """Check everything; shape and dtype of each argument of the call."""
        for arg, x in zip(self.given, given, strict=True):
            _, dtype, device = library.describe(x)
            if dtype != arg.dtype:
                raise ArgumentError(f"{arg.name} has dtype {dtype}, must be {arg.dtype}; convert it, or export for {dtype}")
            if device != self._device:
                raise ArgumentError(f"{arg.name} is on {device}, must be on {self._device}, which the bundle was compiled for")
            if library.device(x) != library.device(given[0]):
                where = f"{library.device(x)}, {self.given[0].name} is on {library.device(given[0])}"
                raise ArgumentError(f"{arg.name} is on {where}; move all arguments to one device")
        sizes = self._solve([library.describe(x)[0] for x in given])
        return [(shape, arg.dtype) for arg, shape in self.allocations(sizes)]

    def _solve(self, actual: list[tuple[int, ...]]) -> dict[str, int]:
        return shapes.solve([(arg.name, arg.shape) for arg in self.given], actual, self._static)

    def _refused(self, given: Sequence[Any]) -> ArgumentError:
        if len(given) != len(self.given):
            names = ", ".join(arg.name for arg in self.given)
            return ArgumentError(f"{self.name} got {len(given)} arguments, must get {len(self.given)}: {names}")
        kinds = ", ".join(
            f"{arg.name} a {type(x).__module__}.{type(x).__name__}" for arg, x in zip(self.given, given, strict=True)
        )
        return ArgumentError(f"{self.name} got {kinds}; all must be torch tensors, or all numpy arrays")
