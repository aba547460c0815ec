// Nonlinearities on their own: y = act(x), dx = dy act'(x); formulas in act.cuh.
//
//   x, y (n) T; arithmetic in f32. Contract: written (=). Bound by memory.
// Macros: T, ACT.
#include "act.cuh"

extern "C" __global__ void activation_forward_naive(T* y, const T* x, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(act(widen(x[i])).value);
}

extern "C" __global__ void activation_forward(T* y, const T* x, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8];
    load8(v, x + i, n - i);
    for (int k = 0; k < 8; ++k) v[k] = act(v[k]).value;
    store8(y + i, v, n - i);
}

extern "C" __global__ void activation_backward(T* dx, const T* dy, const T* x, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8], d[8];
    load8(v, x + i, n - i);
    load8(d, dy + i, n - i);
    for (int k = 0; k < 8; ++k) d[k] *= act(v[k]).slope;
    store8(dx + i, d, n - i);
}
