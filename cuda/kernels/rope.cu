// Rotary position embedding, rotate-half: of each head's leading 2m dimensions, pairs (x_i, x_{i+m}) turn by the
// angle of (token, i): y_i = x_i cos - x_{i+m} sin, y_{i+m} = x_{i+m} cos + x_i sin; the others pass.
//
//   x, y (tokens, heads, size) T     cos, sin (tokens, half = m) f32
//
// The backward pass turns back: sign = -1. y may be x itself: a thread reads both ends of its pairs before it writes.
// Contract: written (=). Bound by memory: a read and a write of x; the tables are shared by the heads.
//
// Macros: T.  Source: Su et al., arXiv:2104.09864, equation 34.
#include "pack.cuh"

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

// Rung 1: a pack of 8 pairs, or of 8 elements that pass, of one token in HEADS heads a thread, which share the 64 bytes of
// the tables; all that it reads it asks for before the first use. Lanes take the packs of a head, then the next head.
// `packs` = ceil(half / 8) + ceil((size - 2 half) / 8) a head, `groups` = ceil(heads / HEADS). Indices of threads have 32
// bits: divisions of 64 take longer than the turning.
const u32 HEADS = 4;

template <bool WHOLE> __device__ __forceinline__ void turn(
    T* y, const T* x, const f32* cos, const f32* sin, f32 sign, u32 token, u32 group, u32 groups, u32 pack, u32 heads,
    u32 size, u32 half) {
    const u32 turning = (half + PACK - 1) / PACK;
    const bool turns = pack < turning;
    const u32 i = turns ? pack * PACK : 2 * half + (pack - turning) * PACK;
    const i32 n = WHOLE ? 8 : turns ? half - i : size - i;
    const i64 first = (i64)token * heads * size + i;
    Pack<T> a[HEADS], b[HEADS];
    Pack<f32> c, s;
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = group + k * groups;
        if (head >= heads) continue;
        a[k] = fetch<WHOLE>(x + first + (i64)head * size, n);
        if (turns) b[k] = fetch<WHOLE>(x + first + (i64)head * size + half, n);
    }
    if (turns) {
        c = fetch<WHOLE>(cos + (i64)token * half + i, n);
        s = fetch<WHOLE>(sin + (i64)token * half + i, n);
    }
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = group + k * groups;
        if (head >= heads) continue;
        T* to = y + first + (i64)head * size;
        if (!turns) {
            put<WHOLE>(to, a[k], n);
            continue;
        }
        const Eight from = wide(a[k]), with = wide(b[k]);
        f32 low[8], high[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const f32 turn = sign * s.at[e];
            low[e] = fmaf(from.at[e], c.at[e], -__fmul_rn(with.at[e], turn));
            high[e] = fmaf(with.at[e], c.at[e], __fmul_rn(from.at[e], turn));
        }
        put<WHOLE>(to, rounded<T>(low), n);
        put<WHOLE>(to + half, rounded<T>(high), n);
    }
}

extern "C" __global__ void rope(
    T* y, const T* x, const f32* cos, const f32* sin, f32 sign, u32 threads, u32 heads, u32 groups, u32 size, u32 half,
    u32 packs) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= threads) return;
    const u32 pack = at % packs, group = at / packs % groups, token = at / packs / groups;
    if (half % PACK == 0 && whole(size, y, x, cos, sin))
        turn<true>(y, x, cos, sin, sign, token, group, groups, pack, heads, size, half);
    else
        turn<false>(y, x, cos, sin, sign, token, group, groups, pack, heads, size, half);
}
