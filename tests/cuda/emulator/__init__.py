"""Runs generated CUDA on the CPU: a check of kernels and launchers for machines without a GPU.

`run_function` takes an instance, `emulate` any CUDA text with its launchers.  Every thread of a block is a fiber; every
access to memory is checked for bounds, alignment and races.  `ptx` knows the inline assembly, ``include`` stands for the
CUDA toolkit, ``runtime`` for the GPU.
"""

from __future__ import annotations

from tests.cuda.emulator.functions import EmulatedInstance, emulated, run_function
from tests.cuda.emulator.module import EmulatedError, EmulatedFunction, EmulatedModule


def emulate(source: str) -> EmulatedModule:
    """Compile one CUDA text, kernels and launchers together, for the CPU."""
    return EmulatedModule(source)


__all__ = ["EmulatedError", "EmulatedFunction", "EmulatedInstance", "EmulatedModule", "emulate", "emulated", "run_function"]
