// Arithmetic, element by element, on n elements of one type; in f32, rounded once.
//
// Contract: y is written (=) and may be one of the inputs. Bound by memory.
// Macros: T.
#include "common.cuh"

struct Add { static __device__ f32 of(f32 a, f32 b) { return a + b; } };
struct Sub { static __device__ f32 of(f32 a, f32 b) { return a - b; } };
struct Mul { static __device__ f32 of(f32 a, f32 b) { return a * b; } };
struct Div { static __device__ f32 of(f32 a, f32 b) { return a / b; } };

template <class Op> __device__ __forceinline__ void binary(T* y, const T* a, const T* b, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 u[8], v[8];
    load8(u, a + i, n - i);
    load8(v, b + i, n - i);
    for (int k = 0; k < 8; ++k) u[k] = Op::of(u[k], v[k]);
    store8(y + i, u, n - i);
}

// Rung 0: an element a thread.
extern "C" __global__ void elementwise_add_naive(T* y, const T* a, const T* b, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(widen(a[i]) + widen(b[i]));
}

// Rung 1: packs of 8.
extern "C" __global__ void elementwise_add(T* y, const T* a, const T* b, u64 n) { binary<Add>(y, a, b, n); }
extern "C" __global__ void elementwise_sub(T* y, const T* a, const T* b, u64 n) { binary<Sub>(y, a, b, n); }
extern "C" __global__ void elementwise_mul(T* y, const T* a, const T* b, u64 n) { binary<Mul>(y, a, b, n); }
extern "C" __global__ void elementwise_div(T* y, const T* a, const T* b, u64 n) { binary<Div>(y, a, b, n); }

// y = a + b + c + d, from left to right; those that are null are left out.
extern "C" __global__ void elementwise_sum(T* y, const T* a, const T* b, const T* c, const T* d, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    const T* terms[4] = {a, b, c, d};
    f32 v[4][8];
#pragma unroll
    for (u32 t = 0; t < 4; ++t) load8(v[t], (t > 0 && !terms[t] ? a : terms[t]) + i, t > 0 && !terms[t] ? 0 : n - i);
#pragma unroll
    for (u32 t = 1; t < 4; ++t)
#pragma unroll
        for (u32 k = 0; k < 8; ++k)
            if (terms[t]) v[0][k] += v[t][k];
    store8(y + i, v[0], n - i);
}

// y = a x + b y0, for y0 = y before; b = 0 does not read y.
extern "C" __global__ void elementwise_axpby(T* y, const T* x, f32 a, f32 b, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 u[8], v[8];
    load8(u, x + i, n - i);
    load8(v, y + i, b == 0.0f ? 0 : n - i);
    for (int k = 0; k < 8; ++k) u[k] = a * u[k] + b * v[k];
    store8(y + i, u, n - i);
}

// y = x + number.
extern "C" __global__ void elementwise_add_scalar(T* y, const T* x, f32 number, u64 n) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8];
    load8(v, x + i, n - i);
    for (int k = 0; k < 8; ++k) v[k] += number;
    store8(y + i, v, n - i);
}

// Every row of y += row; row (width) f32.
extern "C" __global__ void elementwise_add_row(T* y, const f32* row, u64 n, u32 width) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    f32 v[8];
    load8(v, y + i, n - i);
    const u32 column = i % width;
    // The row goes round within a pack if the width is no multiple of one.
#pragma unroll
    for (u32 k = 0; k < 8; ++k) v[k] += row[column + k < width ? column + k : (column + k) % width];
    store8(y + i, v, n - i);
}
