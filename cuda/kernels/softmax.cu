// Softmax, log-softmax and log-sum-exp over rows.
//
//   m = max x, s = sum e^(x - m):  softmax = e^(x - m) / s,  log-softmax = x - m - ln s,  log-sum-exp = m + ln s
//   x, y (rows, width) T     lse (rows) f32; arithmetic in f32
//
// Sums in the order of common.cuh; a row is one block, so it depends on itself alone. A row of nothing but -inf gives
// NaN in softmax and log-softmax, as in PyTorch.
// Contract: written (=). Bound by memory: the row is read three times, twice out of L1 or L2.
//
// Macros: T.
#include "common.cuh"

struct Row {
    f32 top, sum;
};

// The maximum and the sum of a row, in every thread.
__device__ __forceinline__ Row measure(const T* x, u32 width, f32* scratch) {
    f32 top = -INFINITY_F32;
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + i, width - i);
        for (u32 k = 0; k < 8; ++k)
            if (i + k < width) top = fmaxf(top, v[k]);
    }
    top = block_max(top, scratch);
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + i, width - i);
        for (u32 k = 0; k < 8; ++k)
            if (i + k < width) sum += expf(v[k] - top);
    }
    return {top, block_sum(sum, scratch)};
}

// Rung 0: a thread a row.
extern "C" __global__ void softmax_forward_naive(T* y, const T* x, u32 rows, u32 width) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (i64)row * width;
    y += (i64)row * width;
    f32 top = -INFINITY_F32, sum = 0.0f;
    for (u32 i = 0; i < width; ++i) top = fmaxf(top, widen(x[i]));
    for (u32 i = 0; i < width; ++i) sum += expf(widen(x[i]) - top);
    for (u32 i = 0; i < width; ++i) y[i] = narrow<T>(expf(widen(x[i]) - top) / sum);
}

// Rung 1: a block a row.
extern "C" __global__ void softmax_forward(T* y, const T* x, u32 width) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * width;
    const Row m = measure(x + row, width, scratch);
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, width - i);
        for (int k = 0; k < 8; ++k) v[k] = expf(v[k] - m.top) / m.sum;
        store8(y + row + i, v, width - i);
    }
}

extern "C" __global__ void log_softmax_forward(T* y, const T* x, u32 width) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * width;
    const Row m = measure(x + row, width, scratch);
    const f32 log = logf(m.sum);
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, width - i);
        for (int k = 0; k < 8; ++k) v[k] = v[k] - m.top - log;
        store8(y + row + i, v, width - i);
    }
}

// An infinite maximum is the result: subtracting it would make NaN.
extern "C" __global__ void logsumexp_forward(f32* lse, const T* x, u32 width) {
    __shared__ f32 scratch[32];
    const Row m = measure(x + (i64)blockIdx.x * width, width, scratch);
    const bool infinite = m.top == INFINITY_F32 || m.top == -INFINITY_F32;
    if (threadIdx.x == 0) lse[blockIdx.x] = infinite ? m.top : m.top + logf(m.sum);
}

// dx = y (dy - sum dy y)
extern "C" __global__ void softmax_backward(T* dx, const T* dy, const T* y, u32 width) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * width;
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8], d[8];
        load8(v, y + row + i, width - i);
        load8(d, dy + row + i, width - i);
        for (int k = 0; k < 8; ++k) sum += d[k] * v[k];
    }
    sum = block_sum(sum, scratch);
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8], d[8];
        load8(v, y + row + i, width - i);
        load8(d, dy + row + i, width - i);
        for (int k = 0; k < 8; ++k) v[k] *= d[k] - sum;
        store8(dx + row + i, v, width - i);
    }
}

// dx = dy - e^y sum dy
extern "C" __global__ void log_softmax_backward(T* dx, const T* dy, const T* y, u32 width) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * width;
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 d[8];
        load8(d, dy + row + i, width - i);
        for (int k = 0; k < 8; ++k) sum += d[k];
    }
    sum = block_sum(sum, scratch);
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8], d[8];
        load8(v, y + row + i, width - i);
        load8(d, dy + row + i, width - i);
        for (int k = 0; k < 8; ++k) d[k] -= expf(v[k]) * sum;
        store8(dx + row + i, d, width - i);
    }
}

// dx = dy e^(x - lse), dy (rows) f32
extern "C" __global__ void logsumexp_backward(T* dx, const f32* dy, const T* x, const f32* lse, u32 width) {
    const i64 row = (i64)blockIdx.x * width;
    const f32 d = dy[blockIdx.x], shift = lse[blockIdx.x];
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, width - i);
        for (int k = 0; k < 8; ++k) v[k] = d * expf(v[k] - shift);
        store8(dx + row + i, v, width - i);
    }
}
