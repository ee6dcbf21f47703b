"""What is not written is NaN: memory that PyTorch hands out uninitialised is filled with it, so that reading it shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.utils.deterministic.fill_uninitialized_memory is on
    yield
    torch.use_deterministic_algorithms(False)
