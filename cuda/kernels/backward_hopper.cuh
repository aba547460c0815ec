// What attention's backward pass is made of on Hopper, whatever the size of heads.
//
// Macros: T (bf16 or f16), D (64, 128 or 256), CAP (whether there is a soft-cap).
#pragma once
#include "tile_hopper.cuh"

// A lane's share of a row of sums, times `by`.
__device__ __forceinline__ void store_sums(T* row, const f32 (&sums)[D / 8][4], u32 e, f32 by) {
#pragma unroll
    for (u32 d = 0; d < D / 8; ++d)
        *(u32*)(row + 8 * d + threadIdx.x % 4 * 2) = pair<T>(sums[d][2 * e] * by, sums[d][2 * e + 1] * by);
}

// Two neighbours in shared memory.
__device__ __forceinline__ float2 pair_at(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

// What scores have in common: P = 2^(factor s - LOG2_E lse), and what dS is to be multiplied with in the end.
struct Factors {
    f32 exponent, end;
};
__device__ __forceinline__ Factors factors(const Options& o) {
    return CAP ? Factors{LOG2_E, 1.0f} : Factors{LOG2_E * o.scale, o.scale};
}

// P in place of the score.
__device__ __forceinline__ void probability(f32& s, f32 exponent, f32 shift, const Options& o) {
    if (CAP) s = capped(s, o);
    s = exp2_fast(fmaf(s, exponent, -shift));
}

// dS of a dP, but for what comes in the end. With a soft-cap the score is found again from P, which is there already.
__device__ __forceinline__ void score_gradient(f32& ds, f32 p, f32 shift, f32 level, const Options& o) {
    ds = p * (ds - level);
    if (CAP) ds *= p > 0.0f ? capped_slope((log2f(p) + shift) / LOG2_E, o) : 0.0f;
}

// A stage of a ring of queries: where their tile goes, with that of their gradients behind it, where LOG2_E lse and delta go, and
// the mbarriers that it is told to when the tiles come whole, and that they come to when they must be cleared first.
struct Stage {
    u32 tile, levels, full, landed;
};

// By a warp: block `block` of 64 queries of head h. `rests` counts blocks at a segment's end.
__device__ __forceinline__ void load_queries(
    const Stage& to, u32& rests, const TensorMap* map_q, const TensorMap* map_dout, const f32* lse, const f32* delta,
    const Segment& s, u32 block, u32 h, const Options& o) {
    const u32 lane = threadIdx.x % 32;
    const bool whole = (block + 1) * TILE <= s.queries;
    if (lane == 0) {
        const u32 there = whole ? to.full : to.landed;
        barrier_expect(there, 2 * TILE_BYTES);
        load_tile(to.tile, map_q, there, h, s.q_start + block * TILE);
        load_tile(to.tile + TILE_BYTES, map_dout, there, h, s.q_start + block * TILE);
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = lane + 32 * half, query = block * TILE + row;
        const u64 at = (u64)(s.q_start + query) * o.heads + h;
        // Of a query that sees no key lse is -inf; that of one that there is not is made so: P is 0.
        f32 log = query < s.queries ? lse[at] : -INFINITY_F32;
        const f32 level = query < s.queries ? delta[at] : 0.0f;
        if (log == -INFINITY_F32) log = INFINITY_F32;
        asm volatile("st.shared.f32 [%0], %1;\nst.shared.f32 [%0 + 256], %2;" ::"r"(to.levels + 4 * row),
                     "f"(log * LOG2_E), "f"(level)
                     : "memory");
    }
    if (!whole) {
        barrier_wait(to.landed, rests++ & 1);
        clear_rows<2 * BOXES>(to.tile, s.queries - block * TILE);
        fence_asynchronous();
    }
    __syncwarp();
    if (lane == 0) {
        if (!whole) barrier_arrive(to.full);
        barrier_arrive(to.full);
    }
}

// Of a tile of P, keys from `key0` on in rows and queries at positions from `lowest` on in columns: 0 where a query does not see
// the key.
__device__ __forceinline__ void hide_queries(f32 (&p)[TILE / 8][4], u32 key0, u32 lowest, const Options& o) {
    const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, highest = lowest + TILE - 1;
    // Do the first and the last query see all of these keys?
    if (!o.causal || (key0 + TILE - 1 <= lowest && !(o.window && key0 + o.window <= highest))) return;
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            const u32 at = lowest + 8 * j + lane % 4 * 2 + e % 2, key = key0 + warp * 16 + lane / 4 + e / 2 * 8;
            if (key > at || (o.window && key + o.window <= at)) p[j][e] = 0.0f;
        }
}

// dS between the kernel that makes it and the one that makes dQ of it: tiles of 64 keys and 64 queries, as T, of `kv_heads`
// heads of keys from `first` on with those that share them. Each head has `tiles` of them; places[q_start / 64 + segment + b]
// says where those of block b of a segment's queries begin (no two segments share one, since ceil(n / 64) is at most 1 more than n / 64),
// one for each tile of keys that some query of the block sees.
//
// A tile is stored [key][query], as the lanes that make it have it, 16 bytes each: chunk c of a key's row is queries
// 32 (c / 4) + 2 (c % 4) + {0, 1, 8, 9, 16, 17, 24, 25}. dQ's rows are then in that order, and are put right when they are
// stored.
struct Stored {
    const u32* places;
    u32 tiles, first, kv_heads;
};

// A block of its heads of keys.
__device__ __forceinline__ Piece piece_of_keys(const Stored& in) {
    const Piece piece = piece_of_keys(in.kv_heads);
    return {in.first + piece.head, piece.segment, piece.number};
}

// The query that element `at` of a key's row belongs to.
__device__ __forceinline__ u32 stored_query(u32 at) { return at / 32 * 32 + at / 8 % 4 * 2 + at % 8 / 2 * 8 + at % 2; }

// Tiles of keys that some query of block `block` sees.
__device__ __forceinline__ Span seen_tiles(const Segment& s, const Options& o, u32 block) {
    const u32 query = block * TILE, last = min(query + TILE, s.queries);
    if (query >= last) return {0, 0};
    return {visible(s, o, query).first / TILE, (visible(s, o, last - 1).last + TILE - 1) / TILE};
}

// The first tile of a head's block of queries.
__device__ __forceinline__ u64 stored_tiles(const Stored& in, const Segment& s, u32 segment, u32 block, u32 h, const Options& o) {
    const u32 head = h - in.first * (o.heads / o.kv_heads);
    return (u64)head * in.tiles + in.places[s.q_start / TILE + segment + block];
}

// Stores dS of 64 keys from `key0` on and a block of the queries of head h, by the group that has it as left factors, which products
// may be reading. Behind the segment's last key it is anything, here 0. 16 bytes at a time in PTX, as the compiler makes four
// stores of some.
__device__ __forceinline__ void store_scores(
    T* scores, const Stored& in, const u32 (&ds)[TILE / 16][4], const Segment& s, u32 segment, u32 key0, u32 block, u32 h,
    const Options& o) {
    const Span seen = seen_tiles(s, o, block);
    if (!seen.has(key0 / TILE)) return;
    const u64 tile = stored_tiles(in, s, segment, block, h, o) + key0 / TILE - seen.first;
    const u32 row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    T* const to = scores + tile * (TILE * TILE) + row * TILE + threadIdx.x % 4 * 8;
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 all = key0 + row + 8 * e < s.keys ? 0xffffffff : 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + 8 * e * TILE + 32 * half),
                         "r"(ds[2 * half][e] & all), "r"(ds[2 * half][2 + e] & all), "r"(ds[2 * half + 1][e] & all),
                         "r"(ds[2 * half + 1][2 + e] & all)
                         : "memory");
    }
}
