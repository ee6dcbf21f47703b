// Stands for the file of this name in the CUDA toolkit.
#pragma once
#include "emulator/cuda.h"
