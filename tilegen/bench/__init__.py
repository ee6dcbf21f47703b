"""Benchmarks: every operator against PyTorch in the same run, checked before it is timed.

What is compared is described in ``benchmark.py`` of the operator's folder (`Benchmark`); `run` measures, `show` shows
it as a table, as data, and as a picture over the length.
"""

from __future__ import annotations

from tilegen.bench.spec import Benchmark, Work

__all__ = ["Benchmark", "Work"]
