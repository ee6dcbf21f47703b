"""Buffers of bounded size whose use only the device knows."""

from __future__ import annotations

import torch
from torch import Tensor

from tilegen.errors import ArgumentError


def require_room(name: str, rows: int, used: Tensor) -> None:
    """Refuse a buffer of `rows` rows, the value of `name`, where `used`, a tensor of one number, is larger.

    Memory of the host is looked at at once.  For any other the check runs on the device, in its order: the host learns of it when
    it next waits, without waiting for it here.

    Raises
    ------
    ArgumentError
        When `used` lies in the host's memory and is larger.  From a device, and in compiled programs, it is PyTorch's error with
        the same words.
    """
    if used.device.type == "cpu" and not torch.compiler.is_compiling():
        if int(used) > rows:
            raise ArgumentError(f"{name} is {rows}, must be at least {int(used)}, the number of active rows; make it larger")
        return
    torch._assert_async(used <= rows, f"{name} is below the number of active rows; make it larger")
