"""The CUDA driver as the measuring process uses it: memory, code, launches, events.  No torch, so a process starts in half a second."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilegen.bundle import gpu
from tilegen.tune.gate import Array

ORDINAL = "TILEGEN_TUNE_DEVICE"
"""Variable with the number of the device that a measuring process owns; 0 unless set."""

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
L2_BYTES = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_DEFAULT_SHARED = 48 * 1024

_TYPES: dict[str, list[Any]] = {
    "cuDevicePrimaryCtxRetain": [ctypes.c_void_p, ctypes.c_int],
    "cuCtxSetCurrent": [ctypes.c_void_p],
    "cuMemAlloc_v2": [ctypes.c_void_p, ctypes.c_size_t],
    "cuMemFree_v2": [ctypes.c_uint64],
    "cuMemGetInfo_v2": [ctypes.c_void_p, ctypes.c_void_p],
    "cuMemFreeHost": [ctypes.c_void_p],
    "cuMemAllocHost_v2": [ctypes.c_void_p, ctypes.c_size_t],
    "cuMemcpyHtoD_v2": [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t],
    "cuMemcpyDtoH_v2": [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t],
    "cuMemcpyDtoDAsync_v2": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p],
    "cuMemsetD8Async": [ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p],
    "cuModuleLoadData": [ctypes.c_void_p, ctypes.c_char_p],
    "cuModuleUnload": [ctypes.c_void_p],
    "cuModuleGetFunction": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p],
    "cuFuncSetAttribute": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    "cuLaunchKernel": [ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    "cuCtxSynchronize": [],
    "cuEventCreate": [ctypes.c_void_p, ctypes.c_uint],
    "cuEventRecord": [ctypes.c_void_p, ctypes.c_void_p],
    "cuEventDestroy_v2": [ctypes.c_void_p],
    "cuEventElapsedTime": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    "cuDeviceGetAttribute": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    "cuDriverGetVersion": [ctypes.c_void_p],
}


@functools.cache
def _library() -> ctypes.CDLL:
    cuda = ctypes.CDLL(gpu.DRIVER)
    for name, types in _TYPES.items():
        getattr(cuda, name).argtypes = types
    return cuda


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises
    ------
    RuntimeError
        When it fails; after an illegal access every further call does, and the process must end.
    """
    status = getattr(_library(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()} ({status})")


@functools.cache
def start() -> int:
    """Make the device's context current in this process; returns the device's handle.

    Raises
    ------
    TargetError
        When there is no such device.
    """
    from tilegen.errors import TargetError

    handles, ordinal = gpu.driver().handles, int(os.environ.get(ORDINAL, "0"))
    if ordinal >= len(handles):
        raise TargetError(f"there is no CUDA device {ordinal}; the driver sees {len(handles)}")
    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handles[ordinal])
    call("cuCtxSetCurrent", context)
    return handles[ordinal]


@functools.cache
def l2_bytes() -> int:
    """Bytes of the device's last-level cache."""
    found = ctypes.c_int()
    call("cuDeviceGetAttribute", ctypes.byref(found), L2_BYTES, start())
    return found.value


def allocate(size: int) -> int:
    """The address of `size` bytes (of one at least) on the device."""
    address = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
    return address.value


def available() -> int:
    """Bytes of the device's memory that are free."""
    free_, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free_), ctypes.byref(total))
    return free_.value


def free(address: int) -> None:
    """Give memory back."""
    call("cuMemFree_v2", address)


def upload(address: int, array: Array) -> None:
    """Copy a contiguous array to the device."""
    if array.nbytes:
        call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)


def download(array: Array, address: int) -> None:
    """Fill a contiguous array from the device, after all that was started there has ended."""
    if array.nbytes:
        call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)


def fill(address: int, byte: int, size: int) -> None:
    """Set `size` bytes on the device, in order with launches."""
    if size:
        call("cuMemsetD8Async", address, byte, size, None)


def copy(to: int, address: int, size: int) -> None:
    """Copy on the device, in order with launches."""
    if size:
        call("cuMemcpyDtoDAsync_v2", to, address, size, None)


def wait() -> None:
    """Wait until the device has done everything."""
    call("cuCtxSynchronize")


_staging: dict[int, Array] = {}


def staging(slot: int, size: int) -> Array:
    """`size` bytes of host memory that the device copies to at full speed; those of a slot are the same each time."""
    if slot not in _staging or _staging[slot].size < size:
        if slot in _staging:
            call("cuMemFreeHost", _staging.pop(slot).ctypes.data)
        address, room = ctypes.c_void_p(), max(size, 1)
        call("cuMemAllocHost_v2", ctypes.byref(address), room)
        _staging[slot] = np.ctypeslib.as_array((ctypes.c_ubyte * room).from_address(address.value or 0))
    return _staging[slot][:size]


class Code:
    """A cubin on the device."""

    def __init__(self, cubin: bytes) -> None:
        self._module = ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(self._module), cubin)

    def kernel(self, name: str, shared: int) -> ctypes.c_void_p:
        """The kernel called `name`, ready to use `shared` bytes of dynamic shared memory."""
        found = ctypes.c_void_p()
        call("cuModuleGetFunction", ctypes.byref(found), self._module, name.encode())
        if shared >= _DEFAULT_SHARED:
            call("cuFuncSetAttribute", found, MAX_DYNAMIC_SHARED, shared)
        return found

    def unload(self) -> None:
        """Remove it from the device."""
        call("cuModuleUnload", self._module)


class Launch:
    """One start of a kernel with everything known."""

    def __init__(
        self, kernel: ctypes.c_void_p, grid: Sequence[int], block: Sequence[int], shared: int, arguments: Sequence[int]
    ) -> None:
        # Eight bytes for every argument: a kernel reads as many of them as its parameter has.
        self._values = (ctypes.c_uint64 * len(arguments))(*arguments)
        begin = ctypes.addressof(self._values)
        self._addresses = (ctypes.c_void_p * len(arguments))(*range(begin, begin + 8 * len(arguments), 8))
        self._fixed = (kernel, *grid, *block, shared, None)

    def __call__(self) -> None:
        call("cuLaunchKernel", *self._fixed, self._addresses, None)


class Event:
    """A point in time on the device."""

    def __init__(self) -> None:
        self._event = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self) -> None:
        """Note the time when everything started before has ended."""
        call("cuEventRecord", self._event, None)

    def seconds_since(self, earlier: Event) -> float:
        """Seconds between two events that have passed."""
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier._event, self._event)
        return milliseconds.value * 1e-3

    def __del__(self) -> None:
        _library().cuEventDestroy_v2(self._event)
