//! CUDA devices, kernels and their emulator, for planish.
