"""Targets: this machine's CPU or GPU, or a named one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tilegen import _tvm

_tvm.ensure()

from tvm.target import Target, codegen  # noqa: E402

from tilegen.build import gpus  # noqa: E402
from tilegen.build.host import cores, host_name  # noqa: E402
from tilegen.bundle import machine  # noqa: E402
from tilegen.bundle.manifest import OFFSETS, PRODUCTS  # noqa: E402
from tilegen.errors import TargetError  # noqa: E402
from tilegen.schedules.rule import Gpu, Machine  # noqa: E402

# Generic levels that TVM's LLVM knows as CPU names, by the name of their tuning records.
NAMED = {"x86-64-v2": "x86_64-v2", "x86-64-v3": "x86_64-v3", "x86-64-v4": "x86_64-v4"}

NEWER = {"bfloat16": 80}
"""Dtypes that older GPUs lack, with the first compute capability that has them."""

TF32 = 80
"""The first compute capability whose tensor cores take float32 operands rounded to TF32."""


@dataclass(frozen=True)
class BuildTarget:
    """What code is generated for: TVM's target, what schedule rules may know, and the name of its tuning records.

    `machine` is a `Machine` for a CPU, a `Gpu` for a GPU.
    """

    tvm: Any
    machine: Any
    device: str
    description: dict[str, Any]

    @property
    def kind(self) -> str:
        """ "llvm" or "cuda"."""
        return str(self.tvm.kind.name)

    @property
    def wide(self) -> bool:
        """Whether tensors may have 2^31 elements and more."""
        return self.description.get(OFFSETS) == 64

    def check(self, dtype: str) -> None:
        """Raise TargetError when the target has no arithmetic of this dtype."""
        if self.kind == "cuda" and self.machine.capability < NEWER.get(dtype, 0):
            raise TargetError(
                f"target is {self.description['arch']}, which has no {dtype}; use float16 or float32, or a target from "
                f"sm_{NEWER[dtype]} on"
            )


def resolve(name: str | None = None, *, wide: bool = False, tf32: bool = False) -> BuildTarget:
    """The target called `name`, or this machine's CPU.

    Parameters
    ----------
    name : None, "cpu" or "llvm" for this machine; "x86-64-v3" or any CPU name of LLVM ("znver4", "skylake-avx512"); "cuda" or
        "cuda:1" for a GPU of this machine; "sm_90" for a GPU that need not be here; "sm_80,sm_90" for one library that has code
        for each of them, with tiles that fit the least of them.
    wide : for a GPU: tensors may have 2^31 elements and more, at the cost of 64-bit offsets everywhere.
    tf32 : for a GPU from sm_80 on: operands of products of float32 tensors are rounded to TF32, for its tensor cores.

    Raises
    ------
    TargetError
        When LLVM does not know the CPU (it would accept the name silently), there is no such GPU, or none at all; when a CPU's
        code shall be wide, or TF32 is asked of what has none.
    """
    if name is not None and gpus.is_name(name):
        return _gpu(gpus.of_name(name), wide, tf32)
    if wide:
        raise TargetError("wide is True, must be False for a CPU; its tensors have less than 2^31 elements, split the batch")
    if tf32:
        raise TargetError(f"tf32 is True, must be False for a CPU; name a GPU from sm_{TF32} on as the target")
    own = name in (None, "cpu", "llvm")
    mcpu = codegen.llvm_get_system_cpu() if own else str(name)
    target = _target(mcpu)
    if not own and mcpu not in set(codegen.llvm_get_cpu_archlist(target)):
        raise TargetError(
            f"target is {name!r}, must be 'cpu', x86-64-v2, -v3, -v4 or a CPU name of LLVM such as 'znver4'; 'cuda', or a GPU "
            f"architecture among {', '.join(gpus.NAMED)}"
        )
    features = list(codegen.llvm_get_cpu_features(target))
    arch = machine.arch()
    width = 64 if "avx512f" in features else 32 if "avx2" in features else 16
    description: dict[str, Any] = {"kind": "llvm", "mcpu": mcpu, "arch": arch, "features": machine.required(features, arch)}
    device = host_name() if own else NAMED.get(mcpu, _level(description["features"], arch))
    return BuildTarget(target, Machine(cores(), width), device, description)


def _gpu(cards: tuple[gpus.Card, ...], wide: bool, tf32: bool) -> BuildTarget:
    """One target for all `cards`: what it may use is what each of them has."""
    first = cards[0]
    if tf32 and first.capability < TF32:
        raise TargetError(f"tf32 is True, must be False for {first.arch}; GPUs have TF32 from sm_{TF32} on")
    shared = min(card.shared_bytes for card in cards)
    gpu = Gpu(
        capability=first.capability,
        processors=first.processors,
        shared_bytes=shared,
        shared_total=min(card.shared_total for card in cards),
        registers=min(card.registers for card in cards),
        tf32=tf32,
    )
    target = Target(
        {
            "kind": "cuda",
            "arch": first.arch,
            "max_shared_memory_per_block": shared,
            "max_threads_per_block": 1024,
            "thread_warp_size": 32,
        },
        host=Target({"kind": "cuda_host"}),
    )
    description: dict[str, Any] = {"kind": "cuda", "arch": first.arch, "archs": [card.arch for card in cards], "host": machine.arch()}
    if wide:
        description[OFFSETS] = 64
    if tf32:
        description[PRODUCTS] = "tf32"
    return BuildTarget(target, gpu, first.name, description)


def _target(mcpu: str) -> Any:
    return Target({"kind": "llvm", "mcpu": mcpu, "num-cores": cores()})


def _level(features: list[str], arch: str) -> str:
    from tilegen.build.host import LEVELS

    if arch != "x86_64":
        return arch
    return f"{arch}-{next((name for name, needed in LEVELS if needed <= set(features)), 'v1')}"
