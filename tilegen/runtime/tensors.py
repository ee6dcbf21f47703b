"""Torch tensors and numpy arrays behind one small interface; neither library is imported for the other's sake.

Compiled code assumes contiguous tensors whose data start at a multiple of `ALIGNMENT` bytes (on a GPU `GPU_ALIGNMENT`), and
does not check it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from tilegen.errors import ArgumentError

ALIGNMENT = 64
"""Bytes; the width of the widest vector load."""

GPU_ALIGNMENT = 16
"""Bytes; the widest load of a GPU's thread."""


class Library(Protocol):
    """What calling a compiled function needs from a tensor library."""

    def signature(self, tensors: Sequence[Any]) -> Any:
        """A hashable value: calls with equal signatures pass all checks alike."""

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str, str]:
        """Shape, dtype name and device kind."""

    def device(self, tensor: Any) -> Any:
        """The device itself, equal for tensors of one device."""

    def prepared(self, tensor: Any) -> Any:
        """The tensor itself where compiled code can read it, else an aligned, contiguous copy."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: Any) -> Any:
        """A new aligned tensor."""

    def passed(self, tensor: Any) -> Any:
        """The form of a prepared tensor that tvm-ffi accepts."""


def library_of(tensors: Sequence[Any]) -> Library | None:
    """The interface of the library that all of `tensors` belong to, or None."""
    torch = sys.modules.get("torch")
    if torch is not None and all(isinstance(x, torch.Tensor) for x in tensors):
        return _torch(torch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and all(isinstance(x, numpy.ndarray) for x in tensors):
        return _numpy(numpy)
    return None


class _Torch:
    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def signature(self, tensors: Sequence[Any]) -> Any:
        return tuple([(x.shape, x.dtype, x.device, x.layout) for x in tensors])

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str, str]:
        if tensor.layout is not self.torch.strided:
            return tuple(tensor.shape), f"{tensor.layout} of {tensor.dtype}", tensor.device.type
        return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type

    def device(self, tensor: Any) -> Any:
        return tensor.device

    def prepared(self, tensor: Any) -> Any:
        if tensor.is_contiguous() and not tensor.data_ptr() % (GPU_ALIGNMENT if tensor.is_cuda else ALIGNMENT):
            return tensor
        return self._aligned(tensor.detach().clone(memory_format=self.torch.contiguous_format))

    def empty(self, shape: tuple[int, ...], dtype: str, device: Any) -> Any:
        return self._aligned(self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=device))

    def passed(self, tensor: Any) -> Any:
        return tensor

    def _aligned(self, tensor: Any) -> Any:
        """Torch's own allocators align; a replaced one (a debugging malloc) may not."""
        if not tensor.data_ptr() % ALIGNMENT:
            return tensor
        size, width = tensor.numel(), tensor.element_size()
        room = self.torch.empty(size + ALIGNMENT // width, dtype=tensor.dtype, device=tensor.device)
        start = -room.data_ptr() % ALIGNMENT // width
        return room[start : start + size].view(tensor.shape).copy_(tensor)


class _Numpy:
    def __init__(self, numpy: Any) -> None:
        self.numpy = numpy

    def signature(self, tensors: Sequence[Any]) -> Any:
        return tuple([(x.shape, x.dtype) for x in tensors])

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str, str]:
        dtype = tensor.dtype
        return tensor.shape, dtype.name if dtype.isnative else f"byte-swapped {dtype.name}", "cpu"

    def device(self, tensor: Any) -> Any:
        return "cpu"

    def prepared(self, tensor: Any) -> Any:
        if tensor.flags.c_contiguous and not tensor.ctypes.data % ALIGNMENT:
            return tensor
        copy = self._empty(tensor.shape, tensor.dtype)
        copy[...] = tensor
        return copy

    def empty(self, shape: tuple[int, ...], dtype: str, device: Any) -> Any:
        return self._empty(shape, self.dtype(dtype))

    def passed(self, tensor: Any) -> Any:
        # numpy exports neither read-only arrays nor dtypes of other packages, such as bfloat16.
        if tensor.dtype.isbuiltin == 1 and tensor.flags.writeable:
            return tensor
        return _Exported(tensor)

    def dtype(self, name: str) -> Any:
        if name != "bfloat16":
            return self.numpy.dtype(name)
        try:
            import ml_dtypes
        except ImportError:
            raise ArgumentError(
                "numpy has no bfloat16 of its own and ml_dtypes is not installed; pip install ml_dtypes, or pass torch tensors"
            ) from None
        return self.numpy.dtype(ml_dtypes.bfloat16)

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        size = math.prod(shape) * dtype.itemsize
        room = self.numpy.empty(size + ALIGNMENT, self.numpy.uint8)
        start = -room.ctypes.data % ALIGNMENT
        return room[start : start + size].view(dtype).reshape(shape)


_torch, _numpy = functools.cache(_Torch), functools.cache(_Numpy)


class _DLTensor(ctypes.Structure):
    """``DLManagedTensor`` of the DLPack standard: the tensor first, then what its owner needs."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's type codes by numpy's kinds
_BFLOAT = 4
_CPU = 1

_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class _Exported:
    """A contiguous numpy array that numpy itself does not export.

    It has no deleter: the receiver must not outlive this object, which holds for the arguments of a call.
    """

    def __init__(self, array: Any) -> None:
        dtype = array.dtype
        code = _BFLOAT if dtype.name == "bfloat16" else _CODES[dtype.kind]
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._array, self._shape = array, shape
        self._tensor = _DLTensor(
            data=array.ctypes.data, device_type=_CPU, ndim=array.ndim, code=code, bits=dtype.itemsize * 8, lanes=1, shape=shape
        )

    def __dlpack__(self, **_: Any) -> Any:
        return _capsule(ctypes.addressof(self._tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)
