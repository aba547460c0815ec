// Rotary position embedding, rotate-half: of each head's leading 2m dimensions, pairs (x_i, x_{i+m}) turn by the
// angle of (token, i): y_i = x_i cos - x_{i+m} sin, y_{i+m} = x_{i+m} cos + x_i sin; the others pass.
//
//   x, y (tokens, heads, size) T     cos, sin (tokens, half = m) f32
//
// The backward pass turns back: sign = -1. y may be x itself: a thread reads both ends of its pairs before it writes.
// Contract: written (=). Bound by memory: a read and a write of x; the tables are shared by the heads.
//
// Macros: T.  Source: Su et al., arXiv:2104.09864, equation 34.
#include "common.cuh"

// Rung 0: a pair, or an element that passes, a thread.
extern "C" __global__ void rope_naive(
    T* y, const T* x, const f32* cos, const f32* sin, f32 sign, u64 rows, u32 heads, u32 size, u32 half) {
    const u32 width = size - half;  // half pairs, then what passes
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, row = at / width;
    const u32 i = at % width;
    if (row >= rows) return;
    x += row * size;
    y += row * size;
    if (i >= half) {
        y[i + half] = x[i + half];
        return;
    }
    const u64 t = row / heads * half + i;
    const f32 a = widen(x[i]), b = widen(x[i + half]), c = cos[t], s = sign * sin[t];
    y[i] = narrow<T>(a * c - b * s);
    y[i + half] = narrow<T>(b * c + a * s);
}

// Rung 1: packs of 8 pairs. `packs` = ceil(half / 8) + ceil((size - 2 half) / 8) a head.
extern "C" __global__ void rope(
    T* y, const T* x, const f32* cos, const f32* sin, f32 sign, u64 rows, u32 heads, u32 size, u32 half, u32 packs) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, row = at / packs;
    const u32 pack = at % packs, turning = (half + PACK - 1) / PACK;
    if (row >= rows) return;
    x += row * size;
    y += row * size;
    f32 a[8];
    if (pack >= turning) {
        const u32 i = 2 * half + (pack - turning) * PACK;
        load8(a, x + i, size - i);
        store8(y + i, a, size - i);
        return;
    }
    const u32 i = pack * PACK;
    const i64 n = half - i;
    const u64 t = row / heads * half + i;
    f32 b[8], c[8], s[8], low[8], high[8];
    load8(a, x + i, n);
    load8(b, x + half + i, n);
    load8(c, cos + t, n);
    load8(s, sin + t, n);
    for (int k = 0; k < 8; ++k) {
        low[k] = a[k] * c[k] - b[k] * (sign * s[k]);
        high[k] = b[k] * c[k] + a[k] * (sign * s[k]);
    }
    store8(y + i, low, n);
    store8(y + half + i, high, n);
}
