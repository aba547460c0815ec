// Tiles of attention on Hopper: 64 rows of one head, as boxes of 64 of its dimensions.
//
// Macros: T (bf16 or f16), D (64, 128 or 256).
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

const u32 BOXES = D / 64;  // of a tile
const u32 TILE_BYTES = BOXES * BOX;
// Keys at a time, forward: part of the arithmetic. Of large heads registers have room for the scores of one tile.
const u32 STEP = D <= 128 ? 2 * TILE : TILE;

// Makes the mbarriers of a ring of N stages, before threads of the block meet: N at `full`, each complete after `filled` arrivals and
// the bytes that were announced, N behind them for the `warps` that have done with a stage, and `more` behind these of one arrival.
template <u32 N> __device__ __forceinline__ void begin_ring(u32 full, u32 filled, u32 warps, u32 more) {
    if (threadIdx.x != 0) return;
    for (u32 i = 0; i < N; ++i) {
        barrier_init(full + 8 * i, filled);
        barrier_init(full + 8 * (N + i), warps);
    }
    for (u32 i = 0; i < more; ++i) barrier_init(full + 8 * (2 * N + i), 1);
    fence_asynchronous();
}

// A tile of one head, rows from `row` on.
__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, u32 head, u32 row) {
#pragma unroll
    for (u32 b = 0; b < BOXES; ++b) load_box(to + b * BOX, map, barrier, 64 * b, head, row);
}

// 8 halves to shared memory.
__device__ __forceinline__ void store_chunk(u32 to, uint4 chunk) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w)
                 : "memory");
}

// 64 keys of k or v from key `first` on to boxes that are `apart`, by the warp's own loads; zeros behind the segment's end.
__device__ __forceinline__ void load_rest(
    u32 to, u32 apart, const T* from, const Segment& s, u32 first, u32 g, const Options& o) {
    for (u32 i = threadIdx.x % 32; i < TILE * D / 8; i += 32) {
        const u32 r = i / (D / 8), c = i % (D / 8), j = first + r;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (j < s.keys) chunk = *(const uint4*)(from + (s.key(j) * o.kv_heads + g) * D + c * 8);
        store_chunk(to + c / 8 * apart + tile_at<64>(r, c % 8), chunk);
    }
}
