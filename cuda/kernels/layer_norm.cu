// Layer normalisation: y = x^ w + b, x^ = (x - mu) r, r = 1 / sqrt(mean (x - mu)^2 + eps), over rows of `size`.
//
//   x, y (rows, size) T     w, b (size) W, b may be null     stats (rows, 2) f32: mu, r
//
// The mean first, then the deviations from it: mean x^2 - mu^2 in one pass would cancel.
// Sums: in f32, in the order of common.cuh; a row is one block.
// Contract: y, stats, dx are written (=); dweight and dbias are added to (+=).
// Bound by memory: a read and a write of x; the further readings of the row come from L1 or L2.
//
// Macros: T, W.  Source: Ba, Kiros, Hinton, arXiv:1607.06450.
#include "columns.cuh"

// Rung 0: a thread a row.
extern "C" __global__ void layer_norm_forward_naive(
    T* y, f32* stats, const T* x, const W* weight, const W* bias, f32 eps, u32 rows, u32 size) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (i64)row * size;
    y += (i64)row * size;
    f32 sum = 0.0f, squares = 0.0f;
    for (u32 i = 0; i < size; ++i) sum += widen(x[i]);
    const f32 mean = sum / (f32)size;
    for (u32 i = 0; i < size; ++i) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    const f32 r = 1.0f / sqrtf(squares / (f32)size + eps);
    for (u32 i = 0; i < size; ++i)
        y[i] = narrow<T>((widen(x[i]) - mean) * r * widen(weight[i]) + (bias ? widen(bias[i]) : 0.0f));
    stats[2 * row] = mean;
    stats[2 * row + 1] = r;
}

// Rung 1: a block a row, 16 bytes a load.
extern "C" __global__ void layer_norm_forward(
    T* y, f32* stats, const T* x, const W* weight, const W* bias, f32 eps, u32 size) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * size;
    f32 sum = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, size - i);
        for (int k = 0; k < 8; ++k) sum += v[k];
    }
    const f32 mean = block_sum(sum, scratch) / (f32)size;
    f32 squares = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, x + row + i, size - i);
        for (u32 k = 0; k < 8; ++k) squares += i + k < size ? (v[k] - mean) * (v[k] - mean) : 0.0f;
    }
    const f32 r = 1.0f / sqrtf(block_sum(squares, scratch) / (f32)size + eps);
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], w[8], b[8];
        load8(v, x + row + i, size - i);
        load8(w, weight + i, size - i);
        load8(b, bias ? bias + i : weight + i, bias ? size - i : 0);
        for (int k = 0; k < 8; ++k) v[k] = (v[k] - mean) * r * w[k] + b[k];
        store8(y + row + i, v, size - i);
    }
    if (threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = r;
    }
}

// dx = r (g - mean g - x^ mean(g x^)), g = dy w.
extern "C" __global__ void layer_norm_backward(
    T* dx, const T* dy, const T* x, const W* weight, const f32* stats, u32 size) {
    __shared__ f32 scratch[32];
    const i64 row = (i64)blockIdx.x * size;
    const f32 mean = stats[2 * blockIdx.x], r = stats[2 * blockIdx.x + 1];
    f32 level = 0.0f, along = 0.0f;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], g[8], w[8];
        load8(v, x + row + i, size - i);
        load8(g, dy + row + i, size - i);
        load8(w, weight + i, size - i);
        for (int k = 0; k < 8; ++k) {
            level += g[k] * w[k];
            along += g[k] * w[k] * (v[k] - mean);
        }
    }
    level = block_sum(level, scratch) / (f32)size;
    along = block_sum(along, scratch) * r / (f32)size;
    for (u32 i = PACK * threadIdx.x; i < size; i += PACK * blockDim.x) {
        f32 v[8], g[8], w[8];
        load8(v, x + row + i, size - i);
        load8(g, dy + row + i, size - i);
        load8(w, weight + i, size - i);
        for (int k = 0; k < 8; ++k) v[k] = (g[k] * w[k] - level - (v[k] - mean) * r * along) * r;
        store8(dx + row + i, v, size - i);
    }
}

// partial[b][0][c] = sum over the rows of block b of dy x^, partial[b][1][c] = that of dy.
extern "C" __global__ void layer_norm_dweight(
    f32* partial, const T* dy, const T* x, const f32* stats, u32 rows, u32 size) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_BLOCK;
    if (c >= size) return;
    f32 weight = 0.0f, bias = 0.0f;
    for (u32 row = first; row < min(rows, first + ROW_BLOCK); ++row) {
        const i64 at = (i64)row * size + c;
        const f32 g = widen(dy[at]);
        weight += g * ((widen(x[at]) - stats[2 * row]) * stats[2 * row + 1]);
        bias += g;
    }
    partial[(i64)blockIdx.y * 2 * size + c] = weight;
    partial[((i64)blockIdx.y * 2 + 1) * size + c] = bias;
}

// gradients: (2, size), dweight and then dbias.
extern "C" __global__ void layer_norm_dweight_add(f32* gradients, const f32* partial, u32 blocks, u32 size) {
    add_partials(gradients, partial, blocks, size);
}
