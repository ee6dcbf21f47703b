"""Calls that behave badly on purpose, for worker processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def echo(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def noisy(value: Any) -> Any:
    os.write(1, b"\x00\x00 this is not a frame")
    print("nor is this", flush=True)
    return value


def fail(text: str) -> None:
    raise ValueError(text)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    while True:
        time.sleep(60)


def slow_start() -> None:
    time.sleep(1.0)


def broken_start() -> None:
    raise RuntimeError("no such library")


BAD = """
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>
int __tvm_ffi_main(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {
  DLTensor* t[3];
  for (int i = 0; i < 3; ++i)
    t[i] = args[i].type_index == kTVMFFIDLTensorPtr ? (DLTensor*)args[i].v_ptr
                                                    : (DLTensor*)((char*)args[i].v_obj + sizeof(TVMFFIObject));
  float *k = t[0]->data, *v = t[1]->data, *y = t[2]->data;
  long B = t[0]->shape[0], N = t[0]->shape[1], C = t[0]->shape[2];
  static int calls = 0;
  ++calls;
  for (long b = 0; b < B; ++b)
    for (long c = 0; c < C; ++c) {
      double x = 0, z = 0;
      for (long i = 0; i < N; ++i) {
        long at = (b * N + i) * C + c;
        double w = 1.0 / (1.0 + (double)k[at] * k[at]);
        x += w * v[at], z += w;
        y[at] = x / z;
      }
    }
  (void)calls;
  BEHAVE
  return 0;
}
"""

BEHAVIOURS = {
    "ok": "",
    "wrong": "y[1] += 0.01f;",
    "outside": "y[B * N * C] = 0;",
    "input": "k[0] = 0;",
    "unstable": "y[1] *= 1.0f + 1e-7f * (calls % 2);",
    "unwritten": "y[1] = 0.0f / 0.0f;",
    "ragged": "if (N % 4) y[N * C - 1] += 0.01f;",
    "crash": "*(volatile int*)0 = 0;",
    "hang": 'for (;;) __asm__ volatile("");',
    "build": "this does not compile",
}
"""What a candidate of the test kernel does, by name: C appended to a right computation."""


def build_c(module: str, target: str, out: str) -> None:
    """A builder for tests: the first decision, in the name of `out`, chooses a behaviour."""
    import subprocess
    from pathlib import Path

    import tvm_ffi

    behaviour = list(BEHAVIOURS.values())[int(Path(out).stem.split("-")[0])]
    source = Path(out).with_suffix(".c")
    source.write_text(BAD.replace("BEHAVE", behaviour))
    includes = [f"-I{path}" for path in {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}]
    command = ["cc", "-O1", "-shared", "-fPIC", *includes, "-o", out, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def fail_to_build(module: str, target: str, out: str) -> None:
    raise RuntimeError("no compiler today")
