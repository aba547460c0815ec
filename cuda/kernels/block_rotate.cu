// A block-diagonal linear map of the features, forward, for x and for the blocks.
//
//   forward: y[t][g n + c] = sum over k of x[t][g n + k] R[g][k][c], or R[g][c][k] where it is turned: dx from dy
//   blocks:  partial[p][g][k][c] = sum over t of part p of x[t][g n + k] dy[t][g n + c]
//
//   x, dy, y (rows, groups n) T, R (groups, n, n) f32, or (1, n, n) for one that all groups share
//
// Chains in f32 in the order of k, and of t within a part of `each` rows; y is rounded once. A row of y is a function of
// the row of x alone. Threads side by side take neighbours in c, for whom x is one number. 2 n operations a feature, each
// with a read from cache, which it is bound by: a share n / out of a linear map's.
// Contract: results are written (=).
//
// Macros: T.
#include "common.cuh"

extern "C" __global__ void block_rotate_forward(
    T* y, const T* x, const f32* r, u64 total, u32 groups, u32 n, u32 shared, u32 turned) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const u32 g = i / n % groups, c = i % n;
    const f32* block = r + (shared ? 0 : (i64)g * n * n) + (turned ? (i64)c * n : c);
    const u32 step = turned ? 1 : n;
    const T* from = x + (i - c);
    f32 sum = 0.0f;
    for (u32 k = 0; k < n; ++k) sum = fmaf(widen(from[k]), block[(i64)k * step], sum);
    y[i] = narrow<T>(sum);
}

extern "C" __global__ void block_rotate_blocks(
    f32* partial, const T* x, const T* dy, u64 total, u32 rows, u32 each, u32 groups, u32 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const u32 c = i % n, k = i / n % n, g = i / ((u64)n * n) % groups, part = i / ((u64)n * n * groups);
    const u32 first = part * each, last = min(rows, first + each);
    const i64 width = (i64)groups * n, at = (i64)g * n;
    f32 sum = 0.0f;
    for (u32 t = first; t < last; ++t) sum = fmaf(widen(x[t * width + at + k]), widen(dy[t * width + at + c]), sum);
    partial[i] = sum;
}
