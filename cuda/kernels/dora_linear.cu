// What a linear map with trained lengths of rows (DoRA) needs besides its product: lengths, gains, scaled columns.
//
//   norms:   n[o] = |W[o] + sum over k of (s B[o][k]) A[k]|     W (out, in) T, A (r, in), B (out, r), n (out), all f32
//   gains:   g[o] = m[o] / n[o], 0 where n[o] is 0              m, n, g (out) f32
//   columns: y[t][o] = x[t][o] g[o]                             x, y (rows, out) T, g (out) f32
//
// All in f32, rounded once. A row of W + s B A is made from left to right in k, an element a thread, and kept nowhere; its
// squares are summed by columns of a thread, then in the order of common.cuh. A block takes ROWS of them, so that A is
// read once for these: 2 r in out operations on W's elements, bound by the cache that A lies in. Columns are bound by
// memory.
// Contract: results are written (=); y may be x.
//
// Macros: T.
#include "common.cuh"

const u32 ROWS = 8;

extern "C" __global__ void dora_linear_norms(
    f32* n, const T* w, const f32* a, const f32* b, u32 out, u32 in, u32 r, f32 scale) {
    __shared__ f32 scratch[32];
    const u32 first = blockIdx.x * ROWS;
    f32 sums[ROWS] = {};
    for (u32 i = threadIdx.x; i < in; i += blockDim.x) {
        f32 v[ROWS];
#pragma unroll
        for (u32 j = 0; j < ROWS; ++j) v[j] = widen(w[(i64)min(first + j, out - 1) * in + i]);
        for (u32 k = 0; k < r; ++k) {
            const f32 x = a[(i64)k * in + i];
#pragma unroll
            for (u32 j = 0; j < ROWS; ++j) v[j] = fmaf(scale * b[(i64)min(first + j, out - 1) * r + k], x, v[j]);
        }
#pragma unroll
        for (u32 j = 0; j < ROWS; ++j) sums[j] = fmaf(v[j], v[j], sums[j]);
    }
#pragma unroll
    for (u32 j = 0; j < ROWS; ++j) {
        const f32 sum = block_sum(sums[j], scratch);
        if (threadIdx.x == 0 && first + j < out) n[first + j] = sqrtf(sum);
    }
}

extern "C" __global__ void dora_linear_gains(f32* g, const f32* m, const f32* n, u32 out) {
    const u32 o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o < out) g[o] = n[o] == 0.0f ? 0.0f : m[o] / n[o];
}

extern "C" __global__ void dora_linear_columns(T* y, const T* x, const f32* g, u64 total, u32 out) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= total) return;
    f32 v[8];
    load8(v, x + i, total - i);
    const u32 column = i % out;
    // The columns go round within a pack if their number is no multiple of one.
#pragma unroll
    for (u32 k = 0; k < 8; ++k) v[k] *= g[column + k < out ? column + k : (column + k) % out];
    store8(y + i, v, total - i);
}
