// What norms share: a row that is read once and kept in registers.
//
// LANES threads take a row: a power of two up to 32, several rows a block, or whole warps, a row a block. Pack p of a row
// (8 elements) belongs to thread p mod LANES, which asks for its first PACKS packs before it uses any, so that a
// multiprocessor has tens of kilobytes on their way. What is beyond PACKS * LANES packs is read again where it is needed, and
// so is the weight, out of L1.
//
// Sums over a row: packs in order, lanes in halves, warps in order; LANES and PACKS depend on the row's size and type alone.
// Multiplications and additions are fused where fmaf says so and nowhere else: a row has the same bits in every kernel.
#pragma once
#include "columns.cuh"
#include "pack.cuh"

// Packs that a thread keeps. Rows that are not made of whole, aligned packs are not kept but read again; their sums have the
// same order.
template <bool WHOLE> constexpr int KEPT_OF = WHOLE ? PACKS : 0;

// A block: whole warps, 128 threads where more than one row fits.
const u32 NORM_THREADS = LANES > 32 ? LANES : 128;
const u32 STRIDE = PACK * LANES;

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
