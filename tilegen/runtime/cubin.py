"""Functions whose kernels are machine code alone: started through the driver, with sizes from a table of launches.

What nvcc's launchers do in compiled code happens here in Python, a few microseconds a kernel, so that a machine without a host
compiler runs the same kernels.  Takes torch tensors; kernels run on torch's current stream.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tilegen.bundle import gpu, shapes
from tilegen.bundle.manifest import CUBIN, LAUNCHES, EntryPoint, Manifest
from tilegen.errors import ArgumentError, BundleError

_PLANS = 512  # sets of shapes remembered by a function
_SHARED_LIMIT = 48 * 1024  # bytes of shared memory that a kernel may use without asking
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class _Launch:
    """One launch with all sizes known, what the driver takes laid out: a call fills in the addresses of its tensors.

    Parameters
    ----------
    slots : the kernel's arguments, positions of tensors or (None, number).
    """

    def __init__(
        self,
        function: ctypes.c_void_p,
        slots: Sequence[tuple[int | None, int]],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
    ) -> None:
        count = len(slots)
        # Eight bytes for every argument: a kernel reads as many of them as its parameter has.
        self.values = (ctypes.c_uint64 * count)(*[number if at is None else 0 for at, number in slots])
        self.tensors = tuple((slot, at) for slot, (at, _) in enumerate(slots) if at is not None)
        start = ctypes.addressof(self.values)
        self.addresses = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))
        self.head = (function, *grid, *block, shared)


class Module:
    """The functions of a bundle by symbol; the machine code is loaded once for each device that is used."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self._entries = {entry.symbol: entry for entry in manifest.functions.values()}
        self._static = manifest.static
        self._code = {name.removesuffix(CUBIN): data for name, data in files.items() if name.endswith(CUBIN)}
        try:
            self._table: dict[str, list[dict[str, Any]]] = json.loads(files[LAUNCHES])
        except (KeyError, ValueError) as error:
            raise BundleError(f"{LAUNCHES} is missing or no JSON ({error}); export the bundle again") from None
        self._driver = _driver()
        self._loaded: dict[int, tuple[ctypes.c_void_p, ctypes.c_void_p]] = {}
        self._lock = threading.Lock()
        self._starting = threading.Lock()

    def get_function(self, symbol: str) -> Starter:
        """The function called `symbol`; KeyError when there is none."""
        return Starter(self, self._entries[symbol], self._table[symbol])

    def context(self, device: int) -> ctypes.c_void_p:
        """The device's context, which torch uses too."""
        return self._on(device)[0]

    def kernel(self, device: int, name: str, shared: int) -> ctypes.c_void_p:
        """The kernel called `name`, ready to use `shared` bytes of shared memory; its device's context must be current."""
        found = ctypes.c_void_p()
        self.check(self._driver.cuModuleGetFunction(ctypes.byref(found), self._on(device)[1], name.encode()))
        if shared >= _SHARED_LIMIT:
            self.check(self._driver.cuFuncSetAttribute(found, _MAX_DYNAMIC_SHARED, shared))
        return found

    def check(self, status: int) -> None:
        """Raise when a call of the driver failed."""
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"CUDA launch: {(text.value or b'unknown error').decode()} ({status})")

    def launch(self, context: ctypes.c_void_p, launches: Sequence[_Launch], pointers: Sequence[int], stream: int) -> None:
        """Start all of `launches` in order on a stream, with the addresses of the tensors."""
        driver, old = self._driver, ctypes.c_void_p()
        self.check(driver.cuCtxPushCurrent_v2(context))
        try:
            # The driver copies the arguments before it returns; until then they are this call's.
            with self._starting:
                for one in launches:
                    for slot, at in one.tensors:
                        one.values[slot] = pointers[at]
                    if status := driver.cuLaunchKernel(*one.head, stream, one.addresses, None):
                        self.check(status)
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(old))

    def _on(self, device: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
        """Context and loaded machine code of a device."""
        with self._lock:
            if device not in self._loaded:
                context, module = ctypes.c_void_p(), ctypes.c_void_p()
                self.check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu.driver().handles[device]))
                self.check(self._driver.cuCtxPushCurrent_v2(context))
                try:
                    self.check(self._driver.cuModuleLoadData(ctypes.byref(module), self._code_for(device)))
                finally:
                    self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
                self._loaded[device] = (context, module)
            return self._loaded[device]

    def _code_for(self, device: int) -> bytes:
        """The machine code of the highest architecture that the device runs."""
        capability = gpu.driver().capabilities[device]
        fitting = [arch for arch in self._code if gpu.runs(arch, capability)]
        if not fitting:
            raise RuntimeError(f"CUDA launch: device {device} is sm_{capability}, the bundle has {', '.join(self._code)}")
        return self._code[max(fitting, key=lambda arch: int(arch.removeprefix("sm_")))]


class Starter:
    """One function: called with all tensors of its entry point, in order, it starts its kernels and returns."""

    def __init__(self, module: Module, entry: EntryPoint, table: Sequence[Mapping[str, Any]]) -> None:
        self._module, self._entry, self._table = module, entry, table
        self._plans: dict[Any, list[_Launch]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Start all kernels; RuntimeError when the driver refuses, ArgumentError when an argument does not fit."""
        device = arguments[0].get_device()
        key = (device, *[(x.shape, x.dtype) for x in arguments])
        context = self._module.context(device)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._planned(arguments, device, context)
        stream = sys.modules["torch"]._C._cuda_getCurrentRawStream(device)  # what torch's compiler calls: no Stream object is made
        self._module.launch(context, plan, [x.data_ptr() for x in arguments], stream)

    def _planned(self, arguments: Sequence[Any], device: int, context: ctypes.c_void_p) -> list[_Launch]:
        """Check the arguments, and work out the sizes of every launch."""
        args = self._entry.args
        if len(arguments) != len(args):
            raise ArgumentError(f"got {len(arguments)} arguments, must get {len(args)}: {', '.join(arg.name for arg in args)}")
        for arg, x in zip(args, arguments, strict=True):
            dtype = str(x.dtype).removeprefix("torch.")
            if dtype != arg.dtype or x.get_device() != device or not x.is_contiguous():
                raise ArgumentError(
                    f"{arg.name} is {dtype} on {x.device}, must be contiguous {arg.dtype} on cuda:{device}; convert it or move it"
                )
        static = self._module._static
        known = static | shapes.solve([(a.name, a.shape) for a in args], [tuple(x.shape) for x in arguments], static)
        places = {arg.name: i for i, arg in enumerate(args)}

        def size(text: int | str) -> int:
            return shapes.evaluate(text, known)

        module, popped = self._module, ctypes.c_void_p()
        module.check(module._driver.cuCtxPushCurrent_v2(context))
        try:
            return [
                _Launch(
                    module.kernel(device, one["kernel"], size(one["shared"])),
                    [(places[a["tensor"]], 0) if "tensor" in a else (None, size(a["size"])) for a in one["arguments"]],
                    (size(one["grid"][0]), size(one["grid"][1]), size(one["grid"][2])),
                    (size(one["block"][0]), size(one["block"][1]), size(one["block"][2])),
                    size(one["shared"]),
                )
                for one in shapes.chosen(self._table, known)
            ]
        finally:
            module._driver.cuCtxPopCurrent_v2(ctypes.byref(popped))


def _driver() -> Any:
    """The driver with the types of the functions whose arguments ctypes would cut to 32 bits."""
    cuda = ctypes.CDLL(gpu.DRIVER)
    handle, number = ctypes.c_void_p, ctypes.c_uint
    cuda.cuLaunchKernel.argtypes = [handle, *[number] * 7, handle, handle, handle]
    cuda.cuCtxPushCurrent_v2.argtypes = [handle]
    cuda.cuModuleGetFunction.argtypes = [handle, handle, ctypes.c_char_p]
    cuda.cuFuncSetAttribute.argtypes = [handle, ctypes.c_int, ctypes.c_int]
    return cuda
