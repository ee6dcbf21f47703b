"""CUDA text as C++ for the emulator: what no header can redefine is rewritten, line numbers stay."""

from __future__ import annotations

import re

from tests.cuda.emulator import ptx

_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)(?:, *\d+)?\) (\w+)\(')
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:(?:__align__|alignas)\(\d+\)\s*)?([\w ]+?)\s+(\w+)\[\];")
_STATIC = re.compile(r"(?<!extern )__shared__\s+(?:(?:__align__|alignas)\((\d+)\)\s*)?([\w ]+?)\s+(\w+)((?:\[\d+\])+);")
_VECTOR = re.compile(r"\*\s*\(((?:u?(?:char|short|int|longlong)|float|double|half|nv_bfloat16)[234]|nv_bfloat16[24])\s*\*\)\s*\(")
_INDEX = re.compile(r"(?<![.\w])(threadIdx|blockIdx|blockDim|gridDim)\b")  # launchers have members of these names
_INDICES = {"threadIdx": "thread_index", "blockIdx": "block_index", "blockDim": "block_size", "gridDim": "grid_size"}
_SMALLEST_ALIGNMENT = 16
_IMAGE = """\
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[], _end[];
static ::emu::Image image(__ehdr_start, _end);"""


def cpp(source: str) -> str:
    """C++ for the text of one function, launchers and kernels together."""
    text = ptx.replace(source)
    text = _DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(::emu::dynamic_shared());", text)
    declarations = iter(range(1_000_000))

    def static(match: re.Match[str]) -> str:
        alignment, kind, name, extents = match.groups()
        room = f"::emu::static_shared({next(declarations)}, sizeof({kind}{extents}), {alignment or _SMALLEST_ALIGNMENT})"
        return f"{kind} (&{name}){extents} = *static_cast<{kind} (*){extents}>({room});"

    text = _STATIC.sub(static, text)
    text = _VECTOR.sub(r"::emu::aligned<\1>(", text)
    text = _INDEX.sub(lambda match: f"::emu::{_INDICES[match[1]]}()", text)
    if "__shared__" in text:
        at = text.index("__shared__")
        raise ValueError(f"a declaration of shared memory that the emulator does not understand: {text[at - 20 : at + 100]!r}")
    return f'#include "emulator/cuda.h"\n#line 1\n{text}\n{registrations(source)}'


def kernels(source: str) -> dict[str, int]:
    """The kernels of a text, each with the threads it is compiled for."""
    return {name: int(threads) for threads, name in _KERNEL.findall(source)}


def registrations(source: str) -> str:
    """Objects that tell the emulator each kernel's name and number of threads when the library is loaded."""
    entry = '::emu::Registered registered_{0}(reinterpret_cast<const void*>({0}), "{0}", {1});'
    return "\n".join([_IMAGE, "namespace {", *(entry.format(*kernel) for kernel in kernels(source).items()), "}\n"])
