"""Whether torch allows products of float32 tensors in TF32 on CUDA devices: asked at every call, as torch's own products do."""

from __future__ import annotations

import torch


def _legacy() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)


_setting = getattr(torch._C, "_get_fp32_precision_getter", None)


def tf32_allowed() -> bool:
    """Whether ``torch.backends.cuda.matmul.fp32_precision`` is "tf32" (before torch 2.9: ``allow_tf32`` is set).

    `torch.set_float32_matmul_precision` and ``torch.backends.cuda.matmul.allow_tf32`` set the same.  Those may not be asked once the
    newer setting was used, and asking the newer one by its public name costs a microsecond: this asks what is behind it.
    """
    return _legacy() if _setting is None else _setting("cuda", "matmul") == "tf32"
