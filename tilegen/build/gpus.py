"""NVIDIA GPUs: the ones of this machine, and architectures by name.  Imports no TVM, and torch only to ask for devices."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from tilegen.errors import TargetError

KIB = 1024
REGISTERS = 65536
"""Of one multiprocessor, in every generation since 2012."""


@dataclass(frozen=True)
class Card:
    """What generated code depends on.

    Parameters
    ----------
    name : the folder of its tuning records, "nvidia-h100"; "sm_90" for an architecture without a card.
    arch : "sm_90".
    processors : streaming multiprocessors.
    shared_bytes, shared_total : shared memory of one block after opting in, and of one multiprocessor, in bytes.
    registers : 32-bit registers of one multiprocessor.
    """

    name: str
    arch: str
    processors: int
    shared_bytes: int
    shared_total: int
    registers: int = REGISTERS

    @property
    def capability(self) -> int:
        """Compute capability times ten: 90."""
        return int(self.arch.removeprefix("sm_"))


def _named(capability: int, processors: int, shared: int) -> Card:
    # One KiB of a multiprocessor's shared memory is the system's for every block (CUDA C++ Programming Guide, "Compute
    # Capabilities"); Turing keeps none back.
    block = shared if capability < 80 else shared - 1
    return Card(f"sm_{capability}", f"sm_{capability}", processors, block * KIB, shared * KIB)


# Capability, multiprocessors of its common card (T4, A100, A40, Orin, L40S, H100, B200, B300, Thor, RTX 5090, GB10), KiB of
# shared memory of one multiprocessor.
NAMED = {
    card.arch: card
    for card in (
        _named(75, 40, 64), _named(80, 108, 164), _named(86, 84, 100), _named(87, 16, 164), _named(89, 142, 100),
        _named(90, 132, 228), _named(100, 148, 228), _named(103, 148, 228), _named(110, 20, 228), _named(120, 170, 100),
        _named(121, 48, 100),
    )
}  # fmt: skip


def is_name(name: str) -> bool:
    """Whether a target's name means a GPU: "cuda", "cuda:1", "sm_90", "sm_80,sm_90"."""
    return name.partition(":")[0] == "cuda" or name.startswith("sm_")


def of_name(name: str) -> tuple[Card, ...]:
    """The cards that a target's name means, the least capable first.

    Raises
    ------
    TargetError
        When the name is unknown, or "cuda" is meant and this machine has no GPU.
    """
    if name.partition(":")[0] == "cuda":
        return (of_device(_index(name)),)
    names = dict.fromkeys(part.strip() for part in name.split(","))
    if unknown := [part for part in names if part not in NAMED]:
        raise TargetError(f"target is {unknown[0]!r}, must be 'cuda' for this machine's GPU or among {', '.join(NAMED)}")
    return tuple(sorted((NAMED[part] for part in names), key=lambda card: card.capability))


def _index(name: str) -> int:
    kind, _, index = name.partition(":")
    if index and not index.isdigit():
        raise TargetError(f"target is {name!r}, must be '{kind}' or '{kind}:' and the number of a device")
    return int(index or 0)


@functools.cache
def of_device(index: int = 0) -> Card:
    """The GPU of this number in this process.

    Raises
    ------
    TargetError
        When torch sees no such device, or it is older than any that code is generated for.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        why = "torch was built without CUDA" if torch.version.cuda is None else f"torch sees {count} CUDA devices"
        raise TargetError(
            f"target 'cuda' needs CUDA device {index}, and {why}; name an architecture such as sm_90 to compile without one"
        )
    found = torch.cuda.get_device_properties(index)
    capability = found.major * 10 + found.minor
    if capability < 75:
        raise TargetError(f"{found.name} has compute capability {found.major}.{found.minor}, must be 7.5 or above; use the CPU")
    arch = f"sm_{capability}"
    # Older torch does not say how much a block may opt into.
    opted = NAMED[arch].shared_bytes if arch in NAMED else found.shared_memory_per_block
    return Card(
        name=folder_name(found.name),
        arch=arch,
        processors=found.multi_processor_count,
        shared_bytes=getattr(found, "shared_memory_per_block_optin", opted),
        shared_total=found.shared_memory_per_multiprocessor,
        registers=getattr(found, "regs_per_multiprocessor", REGISTERS),
    )


def folder_name(name: str) -> str:
    """A device's own name as a folder name, without the size and kind of its memory: "NVIDIA H100 80GB HBM3" -> "nvidia-h100"."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    kept = [word for word in words if not re.fullmatch(r"\d+gb|hbm\w*", word)]
    return "-".join(kept if kept[:1] == ["nvidia"] else ["nvidia", *kept])
