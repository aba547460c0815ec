// Rotary position embedding, rotate-half: of each head's leading 2m dimensions, pairs (x_i, x_{i+m}) turn by the
// angle of (token, i): y_i = x_i cos - x_{i+m} sin, y_{i+m} = x_{i+m} cos + x_i sin; the others pass.
//
//   x, y (tokens, heads, size) T     cos, sin (tokens, half = m) f32
//
// The backward pass turns back: sign = -1. y may be x itself: a thread reads both ends of its pairs before it writes.
// Contract: written (=). Bound by memory: a read and a write of x; the tables are shared by the heads.
//
// Decoding also puts keys and values in their sequences' caches, in the same launch: rope_append.
//
// Macros: T.  Source: Su et al., arXiv:2104.09864, equation 34.
#include "cache.cuh"
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

// Packs of a head: of 8 pairs, then of 8 elements that pass.
__device__ __forceinline__ u32 packs_of(u32 size, u32 half) {
    return (half + PACK - 1) / PACK + (size - 2 * half + PACK - 1) / PACK;
}

// One of them; cos and sin are the token's. The multiply-adds are spelled out, so that all kernels round alike.
__device__ __forceinline__ void turn_pack(
    T* y, const T* x, const f32* cos, const f32* sin, f32 sign, u32 pack, u32 size, u32 half) {
    const u32 turning = (half + PACK - 1) / PACK;
    f32 a[8];
    if (pack >= turning) {
        const u32 i = 2 * half + (pack - turning) * PACK;
        load8(a, x + i, size - i);
        store8(y + i, a, size - i);
        return;
    }
    const u32 i = pack * PACK;
    const i64 n = half - i;
    f32 b[8], c[8], s[8], low[8], high[8];
    load8(a, x + i, n);
    load8(b, x + half + i, n);
    load8(c, cos + i, n);
    load8(s, sin + i, n);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const f32 t = sign * s[k];
        low[k] = fmaf(a[k], c[k], -(b[k] * t));
        high[k] = fmaf(b[k], c[k], a[k] * t);
    }
    store8(y + i, low, n);
    store8(y + half + i, high, n);
}

// q turned to y; k turned and v as it is to a layer of the caches, whose heads are `width` apart:
//
//   q, y (tokens, heads, size)     k, v (tokens, kv_heads, size)
//
// Segment s has tokens cu[s]..cu[s + 1], the last of its k_len[s] keys. Without heads, keys and values alone; with half = 0
// keys as they are. Grid: (blocks of packs of the longest segment, segments).
extern "C" __global__ void rope_append(
    T* y, const T* q, const T* k, const T* v, const f32* cos, const f32* sin, const Cache* caches, u32 layer, const u32* cu,
    const u32* k_len, u32 heads, u32 kv_heads, u32 size, u32 width, u32 half) {
    const u32 turning = packs_of(size, half), passing = packs_of(size, 0);
    const u32 of_q = heads * turning, of_k = kv_heads * turning, packs = of_q + of_k + kv_heads * passing;
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x, i = at / packs, s = blockIdx.y, n = cu[s + 1] - cu[s];
    if (i >= n) return;
    u32 pack = at % packs;
    const u64 token = cu[s] + i;
    cos += token * half;
    sin += token * half;
    if (pack < of_q) {
        const u64 head = (token * heads + pack / turning) * size;
        turn_pack(y + head, q + head, cos, sin, 1.0f, pack % turning, size, half);
        return;
    }
    pack -= of_q;
    const Cache& own = caches[s];
    const u64 row = first_key(own, layer) + k_len[s] - n + i;
    T* to = (T*)own.rows;
    if (pack < of_k) {
        const u32 g = pack / turning;
        to += (row * kv_heads + g) * width;
        turn_pack(to, k + (token * kv_heads + g) * size, cos, sin, 1.0f, pack % turning, size, half);
        return;
    }
    pack -= of_k;
    const u32 g = pack / passing;
    to += ((row + own.capacity) * kv_heads + g) * width;
    turn_pack(to, v + (token * kv_heads + g) * size, 0, 0, 1.0f, pack % passing, size, 0);
}
