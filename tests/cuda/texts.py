"""Hand-written CUDA texts with a launcher in the form that TVM writes."""

from __future__ import annotations

from textwrap import dedent

_LAUNCHER = """
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/function.h>
#include <cuda_runtime.h>

static void* data_of(const TVMFFIAny& arg) {{
  return ((DLTensor*)(arg.type_index == 70 ? (char*)arg.v_ptr + 24 : arg.v_ptr))->data;
}}
extern "C" TVM_FFI_DLL_EXPORT int32_t __tvm_ffi_main(void* self_handle, void* args, int32_t num_args, void* result) {{
  TVMFFIAny* arg = (TVMFFIAny*)args;
  cudaLaunchConfig_t cuda_config = {{}};
  cuda_config.gridDim = dim3({blocks}, 1, 1);
  cuda_config.blockDim = dim3({threads}, 1, 1);
  cuda_config.dynamicSmemBytes = {shared};
  cudaError_t error = {allow};
  if (!error) error = cudaLaunchKernelEx(&cuda_config, kernel, {arguments});
  if (!error) return 0;
  TVMFFIErrorSetRaisedFromCStr("CUDAError", cudaGetErrorString(error));
  return -1;
}}
"""


def text(
    body: str,
    parameters: str,
    *,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    bound: int | None = None,
    ask: bool = True,
) -> str:
    """A kernel called ``kernel`` of pointers (``"float* x, int* y"``), launched once.

    `bound` is what it is compiled for, `threads` unless given; `ask` whether the launcher asks for its dynamic shared memory.
    """
    types = [parameter.rsplit(" ", 1)[0] for parameter in parameters.split(", ")]
    launcher = _LAUNCHER.format(
        blocks=blocks,
        threads=threads,
        shared=shared,
        allow=f"cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, {shared})" if ask else "cudaSuccess",
        arguments=", ".join(f"({kind})data_of(arg[{i}])" for i, kind in enumerate(types)),
    )
    head = "#include <cuda.h>\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#define uchar unsigned char\n"
    signature = f'extern "C" __global__ void __launch_bounds__({bound or threads}) kernel({parameters})'
    return f"{head}{signature};\n{signature} {{\n{dedent(body)}\n}}\n{launcher}"
