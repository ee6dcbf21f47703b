"""Running compiled bundles; needs tvm-ffi and numpy, neither torch nor the TVM compiler.

>>> from tilegen.runtime import load
>>> out = load("elementwise_attention.tilegen").forward(q, k, v)
"""

from __future__ import annotations

from tilegen.runtime.bundle import Bundle, load
from tilegen.runtime.function import Function

__all__ = ["Bundle", "Function", "load"]
