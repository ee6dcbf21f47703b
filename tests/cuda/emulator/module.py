"""A compiled text as functions of torch tensors."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tvm_ffi
from torch import Tensor

from tests.cuda.emulator import compiling

ALIGNMENT = 64
"""Bytes; what launchers and vector loads assume of every tensor."""

ORDERS = {"forward": (0, 0, 0), "reverse": (1, 0, 1), "shuffled": (2, 1, 0), "shuffled again": (2, 2, 1)}
"""Orders in which threads and blocks run, each with a seed and whether asynchronous copies arrive late."""

_CUDA = 2  # DLPack's kDLCUDA
_CODES = {True: 2, False: 0}  # kDLFloat, kDLInt
_OTHERS = {torch.bfloat16: 4, torch.bool: 6, torch.uint8: 1}  # kDLBfloat, kDLBool, kDLUInt

_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class EmulatedError(Exception):
    """A kernel did what a GPU forbids, or a launcher refused; the message says which, where and why."""


class EmulatedModule:
    """The functions of one CUDA text: ``module(*tensors)`` where there is one, ``module["name"](*tensors)`` else."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.path: Path = compiling.library(source)
        self._module = tvm_ffi.load_module(str(self.path))
        self._control = ctypes.CDLL(str(self.path.parent / compiling.RUNTIME))
        self.names = list(dict.fromkeys(re.findall(r"\bint32_t __tvm_ffi_(\w+)\(", source)))

    def __getitem__(self, name: str) -> EmulatedFunction:
        return EmulatedFunction(name, self._module.get_function(name), self._control)

    def __call__(self, *tensors: Tensor, **options: Any) -> None:
        (name,) = self.names
        self[name](*tensors, **options)


class EmulatedFunction:
    """One launcher with the kernels that it launches."""

    def __init__(self, name: str, foreign: Any, control: Any) -> None:
        self.name, self._foreign, self._control = name, foreign, control

    def __call__(self, *tensors: Tensor, order: str = "forward", names: Sequence[str] = ()) -> None:
        """Run on CPU tensors in the order of the launcher's arguments.

        Parameters
        ----------
        tensors : contiguous, at multiples of `ALIGNMENT` bytes.
        order : one of `ORDERS`.
        names : what errors call the tensors.

        Raises
        ------
        EmulatedError
            When a kernel does what a GPU forbids or the launcher refuses its arguments.
        """
        for i, x in enumerate(tensors):
            if not x.is_contiguous() or x.data_ptr() % ALIGNMENT:
                raise ValueError(f"argument {i} must be contiguous and start at a multiple of {ALIGNMENT} bytes")
        called = [*names, *(f"argument {i}" for i in range(len(names), len(tensors)))]
        self._control.emu_set_order(*ORDERS[order])
        self._control.emu_set_tensors(
            len(tensors),
            (ctypes.c_char_p * len(tensors))(*(name.encode() for name in called)),
            (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors)),
            (ctypes.c_size_t * len(tensors))(*(x.numel() * x.element_size() for x in tensors)),
            (ctypes.c_size_t * len(tensors))(*(x.element_size() for x in tensors)),
        )
        exported = [_Exported(x) for x in tensors]
        try:
            self._foreign(*exported)
        except Exception as error:
            raise EmulatedError(f"{self.name}, {order} order: {str(error).strip()}") from None


def aligned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor that launchers accept, filled with bytes 0xFF: NaN, or -1."""
    width = torch.empty((), dtype=dtype).element_size()
    size = width * torch.Size(shape).numel()
    room = torch.full((size + ALIGNMENT,), 0xFF, dtype=torch.uint8)
    start = -room.data_ptr() % ALIGNMENT
    return room[start : start + size].view(dtype).view(tuple(shape))


class _DLTensor(ctypes.Structure):
    """``DLManagedTensor`` of the DLPack standard."""

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


class _Exported:
    """A CPU tensor that says it is on the first CUDA device; it must outlive the call."""

    def __init__(self, x: Tensor) -> None:
        self._tensor = x
        code = _OTHERS.get(x.dtype, _CODES[x.dtype.is_floating_point])
        self._shape = (ctypes.c_int64 * x.ndim)(*x.shape)
        strides = list(itertools.accumulate([1, *x.shape[:0:-1]], lambda a, b: a * b))[::-1]
        self._strides = (ctypes.c_int64 * x.ndim)(*strides[: x.ndim])
        self._managed = _DLTensor(
            data=x.data_ptr(),
            device_type=_CUDA,
            ndim=x.ndim,
            code=code,
            bits=x.element_size() * 8,
            lanes=1,
            shape=self._shape,
            strides=self._strides,
        )

    def __dlpack__(self, **_: Any) -> Any:
        return _capsule(ctypes.addressof(self._managed), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CUDA, 0)
