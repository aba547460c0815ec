// Elementary functions: y = f(x), dx = dy f'(x), n elements; in f32, rounded once.
//
// Macro F: 0 e^x, 1 ln x, 2 sqrt x, 3 tanh x, 4 1 / (1 + e^-x), 5 c tanh(x / c) with c = `cap`.
// Contract: written (=). Bound by memory.
// Macros: T, F.
#include "common.cuh"

struct Both {
    f32 value, slope;
};

__device__ __forceinline__ Both both(f32 x, f32 cap) {
#if F == 0
    const f32 y = expf(x);
    return {y, y};
#elif F == 1
    return {logf(x), 1.0f / x};
#elif F == 2
    const f32 y = sqrtf(x);
    return {y, 0.5f / y};
#elif F == 3
    const f32 y = tanhf(x);
    return {y, 1.0f - y * y};
#elif F == 4
    const f32 y = 1.0f / (1.0f + expf(-x));
    return {y, y * (1.0f - y)};
#elif F == 5
    const f32 t = tanhf(x / cap);
    return {cap * t, 1.0f - t * t};
#else
#error "F must be 0 to 5"
#endif
}

extern "C" __global__ void unary_forward_naive(T* y, const T* x, f32 cap, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(both(widen(x[i]), cap).value);
}

extern "C" __global__ void unary_forward(T* y, const T* x, f32 cap, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8];
    load8(v, x + i, n - i);
    for (int k = 0; k < 8; ++k) v[k] = both(v[k], cap).value;
    store8(y + i, v, n - i);
}

extern "C" __global__ void unary_backward(T* dx, const T* dy, const T* x, f32 cap, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8], d[8];
    load8(v, x + i, n - i);
    load8(d, dy + i, n - i);
    for (int k = 0; k < 8; ++k) d[k] *= both(v[k], cap).slope;
    store8(dx + i, d, n - i);
}
