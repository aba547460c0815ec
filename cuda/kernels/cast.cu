// From one type of element to another: y = x, rounded to the nearest, ties to even.
//
//   x (n) S     y (n) T.  Contract: written (=). Bound by memory.
// Macros: S, T.
#include "common.cuh"

extern "C" __global__ void cast_naive(T* y, const S* x, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(widen(x[i]));
}

extern "C" __global__ void cast(T* y, const S* x, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8];
    load8(v, x + i, n - i);
    store8(y + i, v, n - i);
}
