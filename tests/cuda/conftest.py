"""Nothing of CUDA is needed here: kernels run on the CPU, see `tests.cuda.emulator`."""
