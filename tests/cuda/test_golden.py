"""The CUDA text of two small kernels, one of tiles and one walk: what changed in generated code is seen where it is reviewed."""

from __future__ import annotations

import pytest

from tilegen.build import cuda
from tilegen.cli.instance import instance

KERNELS = {
    "linear_attention": ["D=16", "E=16", "chunk=16"],
    "elementwise_attention": ["C=64", "order=2"],
}


@pytest.mark.parametrize("op", KERNELS)
def test_the_text_of_a_kernel(op, golden):
    text = cuda.source(instance(op, KERNELS[op], "float16"), "sm_80", ("forward",))
    start, end = text.index('extern "C" __global__'), text.index("TVM_FFI_DLL_EXPORT")
    golden(f"cuda/{op}.cu", text[start : text.rindex("\n", start, end)])
