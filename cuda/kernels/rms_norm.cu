// RMSNorm: y = x r (w + offset), r = 1 / sqrt(mean x^2 + eps), over rows of `size`.
//
//   x, y (rows, size) T     w (size) W     r (rows) f32
//
// With a residual, x is first added to it and the sum is kept: sum = round(x + residual), y = norm(sum). The norm is of
// the rounded sum, which is what the backward pass finds.
//
// Sums: in f32, packs of 8 dealt to threads, lanes in halves, warps in order (common.cuh). A row is one block, so its
// result depends on the row alone.
// Contract: y, r, sum, dx are written (=); dweight is added to (+=).
// Bound by memory: a read and a write of x. The second reading of the row comes from L1 or L2.
//
// Macros: T (type of activations), W (type of the weight).
// Source: Zhang, Sennrich, arXiv:1910.07467.
#include "columns.cuh"

// Rung 0: a thread a row. 32 rows are read at once, each far from the next: every load is a transaction of its own.
extern "C" __global__ void rms_norm_forward_naive(
    T* y, f32* r, const T* x, const W* weight, f32 eps, f32 offset, u32 rows, u32 size) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (i64)row * size;
    y += (i64)row * size;
    f32 squares = 0.0f;
    for (u32 i = 0; i < size; ++i) squares += widen(x[i]) * widen(x[i]);
    const f32 scale = 1.0f / sqrtf(squares / (f32)size + eps);
    for (u32 i = 0; i < size; ++i) y[i] = narrow<T>(widen(x[i]) * scale * (widen(weight[i]) + offset));
    r[row] = scale;
}

// Rung 1: a block a row, 16 bytes a load. residual and sum may be null.
extern "C" __global__ void rms_norm_forward(
    T* y, f32* r, T* sum, const T* x, const T* residual, const W* weight, f32 eps, f32 offset, u32 size) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * size;
    f32 squares = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, size - i);
        if (residual) {
            f32 u[8];
            load8(u, residual + row + i, size - i);
            for (int k = 0; k < 8; ++k) v[k] += u[k];
            round8<T>(v);
            store8(sum + row + i, v, size - i);
        }
        for (int k = 0; k < 8; ++k) squares += v[k] * v[k];
    }
    const f32 scale = 1.0f / sqrtf(block_sum(squares, scratch) / (f32)size + eps);
    // A thread reads the packs of `sum` that it wrote itself.
    const T* from = residual ? sum : x;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], w[8];
        load8(v, from + row + i, size - i);
        load8(w, weight + i, size - i);
        for (int k = 0; k < 8; ++k) v[k] = v[k] * scale * (w[k] + offset);
        store8(y + row + i, v, size - i);
    }
    if (threadIdx.x == 0) r[blockIdx.x] = scale;
}

// dx = r (g - n mean(g n)) with n = x r and g = dy (w + offset); plus dresidual, what reaches x past the norm, if given.
extern "C" __global__ void rms_norm_backward(
    T* dx, const T* dy, const T* x, const W* weight, const f32* r, const T* dresidual, f32 offset, u32 size) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * size;
    const f32 scale = r[blockIdx.x];
    f32 along = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], g[8], w[8];
        load8(v, x + row + i, size - i);
        load8(g, dy + row + i, size - i);
        load8(w, weight + i, size - i);
        for (int k = 0; k < 8; ++k) along += g[k] * (w[k] + offset) * v[k];
    }
    const f32 mean = block_sum(along, scratch) * scale / (f32)size;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], g[8], w[8], d[8];
        load8(v, x + row + i, size - i);
        load8(g, dy + row + i, size - i);
        load8(w, weight + i, size - i);
        load8(d, dresidual ? dresidual + row + i : dy + row + i, dresidual ? size - i : 0);
        for (int k = 0; k < 8; ++k) d[k] += scale * (g[k] * (w[k] + offset) - v[k] * scale * mean);
        store8(dx + row + i, d, size - i);
    }
}

// partial[b][c] = sum over the rows of block b of dy x r.
extern "C" __global__ void rms_norm_dweight(f32* partial, const T* dy, const T* x, const f32* r, u32 rows, u32 size) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_BLOCK;
    if (c >= size) return;
    f32 sum = 0.0f;
    for (u32 row = first; row < min(rows, first + ROW_BLOCK); ++row) {
        const i64 at = (i64)row * size + c;
        sum += widen(dy[at]) * (widen(x[at]) * r[row]);
    }
    partial[(i64)blockIdx.y * size + c] = sum;
}

extern "C" __global__ void rms_norm_dweight_add(f32* dweight, const f32* partial, u32 blocks, u32 size) {
    add_partials(dweight, partial, blocks, size);
}
