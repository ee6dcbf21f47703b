// All of CUDA that generated kernels and launchers use, for a C++ compiler without the CUDA toolkit.
#pragma once
#include "emulator/vectors.h"

#include "emulator/core.h"

#include "emulator/arithmetic.h"
#include "emulator/halves.h"
#include "emulator/host.h"
#include "emulator/warp.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
