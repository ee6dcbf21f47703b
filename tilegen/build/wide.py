"""Offsets of 64 bits, for tensors of 2^31 elements and more.

Sizes and indices stay 32-bit numbers: each dim is below 2^31.  Only the sum that says where an element lies gets 64 bits, by its first
index; what the offset is made of follows.
"""

from __future__ import annotations

from typing import Any

from tilegen import _tvm

_tvm.ensure()

import tvm_ffi  # noqa: E402
from tvm import ir, tirx  # noqa: E402

from tilegen.expression.walkers import const_int  # noqa: E402


def widened(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with 64-bit offsets into tensors of symbolic size; before buffers are flattened."""

    def is_large(buffer: Any) -> bool:
        return any(const_int(dim) is None for dim in buffer.ty.shape)

    def indices(given: Any) -> list[Any]:
        first, *rest = given
        return [first.astype("int64"), *rest]

    def load(node: Any) -> Any:
        return tirx.BufferLoad(node.source, indices(node.indices)) if is_large(node.source) else node

    def store(node: Any) -> Any:
        return tirx.BufferStore(node.buffer, node.value, indices(node.indices)) if is_large(node.buffer) else node

    return func.with_body(tvm_ffi.structural_map(func.body, [(ir.TensorLoad, load), (tirx.BufferStore, store)]))
