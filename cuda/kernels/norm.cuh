// What norms share: a row that is read once and kept in registers.
//
// LANES threads take a row: a power of two up to 32, several rows a block, or whole warps, a row a block. Pack p of a row
// (8 elements) belongs to thread p mod LANES, which asks for its first PACKS packs before it uses any, so that a
// multiprocessor has tens of kilobytes on their way. What is beyond PACKS * LANES packs is read again where it is needed.
//
// Sums over a row: packs in order, lanes in halves, warps in order; LANES and PACKS depend on the row's size and type alone.
// Multiplications and additions are fused where fmaf says so and nowhere else: a row has the same bits in every kernel.
#pragma once
#include "columns.cuh"

// Packs that a thread keeps. Rows that are not made of whole, aligned packs are not kept but read again; their sums have the
// same order.
template <bool WHOLE> constexpr int KEPT_OF = WHOLE ? PACKS : 0;

// A block: whole warps, 128 threads where more than one row fits.
const u32 NORM_THREADS = LANES > 32 ? LANES : 128;
const u32 STRIDE = PACK * LANES;

// 8 elements as they lie in memory.
template <class Num> union Pack {
    uint4 words[sizeof(Num) / 2];
    Num at[8];
};

// Forgets what was computed from a pack: widened elements would take twice the registers of the pack until the row's sum
// is known.
template <class Num> __device__ __forceinline__ void forget(Pack<Num>& pack) {
#pragma unroll
    for (int i = 0; i < sizeof(Num) / 2; ++i) {
        uint4& w = pack.words[i];
        asm volatile("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w));
    }
}

// The n (more count as 8) elements at p, zeros after them. WHOLE: all packs are whole and aligned.
template <bool WHOLE, class Num> __device__ __forceinline__ Pack<Num> fetch(const Num* p, i32 n) {
    Pack<Num> pack;
#pragma unroll
    for (int i = 0; i < sizeof(Num) / 2; ++i) pack.words[i] = make_uint4(0, 0, 0, 0);
    if (WHOLE) {
        if (n > 0) {
#pragma unroll
            for (int i = 0; i < sizeof(Num) / 2; ++i) pack.words[i] = ((const uint4*)p)[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) pack.at[i] = p[i];
    }
    return pack;
}

template <bool WHOLE, class Num> __device__ __forceinline__ void put(Num* p, const Pack<Num>& pack, i32 n) {
    if (WHOLE) {
        if (n > 0) {
#pragma unroll
            for (int i = 0; i < sizeof(Num) / 2; ++i) ((uint4*)p)[i] = pack.words[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) p[i] = pack.at[i];
    }
}

template <class Num> __device__ __forceinline__ Pack<Num> rounded(const f32 (&v)[8]) {
    Pack<Num> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.at[i] = narrow<Num>(v[i]);
    return pack;
}

__device__ __forceinline__ bool whole(u32 size, const void* a, const void* b, const void* c, const void* d) {
    return size % PACK == 0 && (((u64)a | (u64)b | (u64)c | (u64)d) & 15) == 0;
}

// Sums over the threads of a row, the same bits in each. `scratch`: 32 N of shared memory, not those of the sum before.
template <int N> __device__ __forceinline__ void row_sum(f32 (&v)[N], f32* scratch) {
#pragma unroll
    for (u32 step = min(LANES, 32) / 2; step > 0; step /= 2)
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += __shfl_xor_sync(ALL_LANES, v[i], step);
    if (LANES <= 32) return;
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int i = 0; i < N; ++i) scratch[threadIdx.x / 32 * N + i] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = scratch[i];
#pragma unroll
    for (u32 w = 1; w < LANES / 32; ++w)
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += scratch[w * N + i];
}
