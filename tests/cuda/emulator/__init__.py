"""Runs generated CUDA on the CPU: a check of kernels and launchers for machines without a GPU."""

from __future__ import annotations

from tests.cuda.emulator.module import EmulatedError, EmulatedFunction, EmulatedModule


def emulate(source: str) -> EmulatedModule:
    """Compile one CUDA text, kernels and launchers together, for the CPU."""
    return EmulatedModule(source)


__all__ = ["EmulatedError", "EmulatedFunction", "EmulatedModule", "emulate"]
