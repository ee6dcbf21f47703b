"""From a graph of tensor-expression stages to kernels: partition, materialisation, emission as schedulable TIR."""

from __future__ import annotations

from tilegen import _tvm

_tvm.ensure()
