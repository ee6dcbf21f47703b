"""How a pattern is tiled on a kind of machine: search spaces and untuned defaults."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()
