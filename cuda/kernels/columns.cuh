// Sums over rows: gradients of weights.
//
// Rows are taken in blocks: of 256 by a column a thread, of as many as the launcher says by the norms, which depends on
// the number and the size of the rows. Each block of rows makes a partial sum, row after row; the partial sums are then
// added to the total in a fixed order. No atomics: the bits depend on the rows and their number alone.
#pragma once
#include "common.cuh"

const u32 ROW_BLOCK = 256;

// total[c] += the sum over blocks b of partial[b][c], in order of b.
__device__ __forceinline__ void add_partials(f32* total, const f32* partial, u32 blocks, u32 size) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= size) return;
    f32 sum = total[c];
    for (u32 b = 0; b < blocks; ++b) sum += partial[(i64)b * size + c];
    total[c] = sum;
}

// The same where blocks are many: 32 columns a block of 1024 threads. Warp s sums stretch s of the blocks of rows, in
// order; the 32 stretches are added to the total in order.
__device__ __forceinline__ void fold_partials(f32* total, const f32* partial, u32 blocks, u32 size) {
    __shared__ f32 sums[32][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    const u32 stretch = (blocks + 31) / 32, last = min(blocks, (warp + 1) * stretch);
    f32 sum = 0.0f;
    if (c < size) {
#pragma unroll 8
        for (u32 b = warp * stretch; b < last; ++b) sum += partial[(i64)b * size + c];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= size) return;
    f32 all = total[c];
    for (u32 w = 0; w < 32; ++w) all += sums[w][lane];
    total[c] = all;
}
