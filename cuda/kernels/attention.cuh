// What the kernels of attention share: the segment table, who sees whom, the soft-cap.
//
// Segment s has queries cu_q[s]..cu_q[s + 1] of the stream and `keys` = k_len[s] keys. Query i of lq stands at position
// i + lk - lq. Causal: it sees keys at positions up to its own; with a window w, only those less than w behind it.
// Query head h shares key/value head g = h / group with its group.
//
// Keys are a stream with k_start[s] as the segment's first row; or, with `pages`, blocks of 64 rows in any order:
// rows pages[s * max_pages + j / 64] * 64 + j % 64; or each segment has a cache of its own (cache.cuh).
#pragma once
#include "cache.cuh"

const u32 TILE = 64;  // keys in a tile, counted from the segment's first: part of the arithmetic

// What a lane of the naive kernels has of a head: elements lane, lane + 32, … below D.
const u32 SHARE = (D + 31) / 32;

struct Options {
    f32 scale, softcap;  // softcap 0: none
    u32 causal, window;  // window 0: none
    u32 heads, kv_heads;
    u32 max_pages;
};

struct Segment {
    u32 q_start, queries, k_start, keys;
    const u32* pages;
    u32 apart;  // rows from a key to its value: keys and values of a cache lie in one piece

    // Row of key j.
    __device__ __forceinline__ u64 key(u32 j) const {
        return pages ? (u64)pages[j / TILE] * TILE + j % TILE : (u64)k_start + j;
    }
};

__device__ __forceinline__ Segment segment(
    u32 s, const u32* cu_q, const u32* k_start, const u32* k_len, const u32* pages, const Options& o) {
    const u32* own = pages ? pages + (u64)s * o.max_pages : 0;
    return {cu_q[s], cu_q[s + 1] - cu_q[s], k_start ? k_start[s] : 0, k_len[s], own, 0};
}

// The same over a layer of the segment's cache.
__device__ __forceinline__ Segment segment(
    u32 s, const u32* cu_q, const u32* k_len, const Cache& cache, u32 layer) {
    return {cu_q[s], cu_q[s + 1] - cu_q[s], (u32)first_key(cache, layer), k_len[s], 0, (u32)cache.capacity};
}

// Segment `number`; of caches, k and v are the one that it has.
__device__ __forceinline__ Segment found(
    const T*& k, const T*& v, const u32* cu_q, const u32* k_start, const u32* k_len, const u32* pages,
    const Cache* caches, u32 layer, u32 number, const Options& o) {
    if (!caches) return segment(number, cu_q, k_start, k_len, pages, o);
    const Cache& own = caches[number];
    k = v = (const T*)own.rows;
    return segment(number, cu_q, k_len, own, layer);
}

// Keys first..last that query i sees.
struct Span {
    u32 first, last;
    __device__ __forceinline__ bool has(u32 key) const { return first <= key && key < last; }
};

// Whether all rows of the warp, each lane's two, see all of `count` keys from key `first` on.
__device__ __forceinline__ bool all_seen(const Span (&spans)[2], u32 first, u32 count) {
    const Span a = spans[0], b = spans[1];
    const bool seen = max(a.first, b.first) <= first && first + count <= min(a.last, b.last);
    return __all_sync(ALL_LANES, seen);
}

__device__ __forceinline__ Span visible(const Segment& s, const Options& o, u32 i) {
    const u32 behind = s.keys - min(s.keys, s.queries), next = i + behind + 1;
    const u32 last = o.causal ? min(next, s.keys) : s.keys;
    const u32 first = o.window && next > o.window ? next - o.window : 0;
    return {min(first, last), last};
}

// A block on tensor cores. Blocks begin in the order of their numbers, and with a causal mask they differ in their work. So a
// section of heads of keys and values goes through its pieces of rows or keys together, the longest of all its heads first,
// and then the next section of the segment, or the first of the next segment, begins: few multiprocessors wait for a long one at
// the end. A section is no larger than what its blocks read again and again has room for in the second-level cache.
// Grid: (heads of a section, pieces, segments times sections).
struct Piece {
    u32 head, segment, number;
};
__device__ __forceinline__ Piece piece_of(u32 kv_heads, u32 number) {
    const u32 sections = kv_heads / gridDim.x;
    return {blockIdx.z % sections * gridDim.x + blockIdx.x, blockIdx.z / sections, number};
}
// The last rows see the most keys.
__device__ __forceinline__ Piece piece_of_rows(const Options& o) {
    return piece_of(o.kv_heads, gridDim.y - 1 - blockIdx.y);
}
// The first keys are seen by the most rows.
__device__ __forceinline__ Piece piece_of_keys(u32 kv_heads) { return piece_of(kv_heads, blockIdx.y); }

const f32 LOG2_E = 1.4426950408889634f;

// 2^x as the hardware makes it, to 2 ulp. What is below the least normal number becomes 0.
__device__ __forceinline__ f32 exp2_fast(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ f32 capped(f32 s, const Options& o) {
    s *= o.scale;
    return o.softcap == 0.0f ? s : o.softcap * tanhf(s / o.softcap);
}

// The derivative of `capped` by the raw score, from the capped one.
__device__ __forceinline__ f32 capped_slope(f32 c, const Options& o) {
    if (o.softcap == 0.0f) return o.scale;
    const f32 t = c / o.softcap;
    return o.scale * (1.0f - t * t);
}
