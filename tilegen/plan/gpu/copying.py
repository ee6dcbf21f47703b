"""Asynchronous copies from global to shared memory (PTX ISA, cp.async; from sm_80 on): 16 bytes each, past the registers."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

COPIED = 16
"""Bytes of one copy."""

COPY = """__device__ __forceinline__ void tilegen_copy(void* to, const void* from, int bytes) {
  unsigned int at = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(from), "r"(bytes));
}
"""
WAIT = """__device__ __forceinline__ void tilegen_copied() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
"""
GROUP = """__device__ __forceinline__ void tilegen_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
"""
WAIT_GROUPS = """__device__ __forceinline__ void tilegen_copied_but_LEFT() {
  asm volatile("cp.async.wait_group LEFT;" ::: "memory");
}
"""


def copy(to: Any, source: Any, exists: Any) -> None:
    """Start the copy of 16 bytes from the element `source` to the element `to`; zeros unless `exists` (None: it does)."""
    taken = tirx.const(COPIED, "int32")
    if exists is not None:
        taken = tirx.Select(exists, taken, tirx.const(0, "int32"))
    T.evaluate(
        T.cuda.func_call("tilegen_copy", T.address_of(to), T.address_of(source), taken, source_code=COPY, return_type="void")
    )


def wait(left: int | None = None) -> None:
    """All copies that this thread has started are there, or all but those of its last `left` groups.

    What others copied is seen after the next barrier.
    """
    if left is None:
        T.evaluate(T.cuda.func_call("tilegen_copied", source_code=WAIT, return_type="void"))
        return
    code = WAIT_GROUPS.replace("LEFT", str(left))
    T.evaluate(T.cuda.func_call(f"tilegen_copied_but_{left}", source_code=code, return_type="void"))


def group() -> None:
    """The copies that this thread has started since the last group are one."""
    T.evaluate(T.cuda.func_call("tilegen_group", source_code=GROUP, return_type="void"))
