"""Compiled mechanisms as PyTorch operators: one forward and one backward `torch.library` op each.

`operator` gives the op of a mechanism, `provenance` says what its libraries were built from.
"""

from __future__ import annotations

from tilegen.torch.loaded import provenance
from tilegen.torch.operator import Operator, operator

__all__ = ["Operator", "operator", "provenance"]
