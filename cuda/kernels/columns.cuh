// Sums over rows: gradients of weights.
//
// Rows are taken in blocks of as many as the launcher says, which depends on the number and the size of the rows and on
// no card. Each block of rows makes a partial sum, row after row; the partial sums are then added to the total in a
// fixed order. No atomics: the bits depend on the rows and their number alone.
#pragma once
#include "common.cuh"

// total[c] += the sum over blocks b of partial[b][c]. 32 columns a block of 1024 threads: warp s sums stretch s of the
// blocks of rows, in order, and the 32 stretches are added to the total in order. Of very many blocks, chunks of `each` are
// summed first (gridDim.y of them), into total[chunk][c], which is written.
__device__ __forceinline__ void fold_partials(f32* total, const f32* partial, u32 blocks, u32 size, u32 each) {
    __shared__ f32 sums[32][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    const u32 first = blockIdx.y * each, count = min(each, blocks - first), stretch = (count + 31) / 32;
    const u32 last = first + min(count, (warp + 1) * stretch);
    f32 sum = 0.0f;
    if (c < size) {
#pragma unroll 8
        for (u32 b = first + warp * stretch; b < last; ++b) sum += partial[(i64)b * size + c];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= size) return;
    total += (i64)blockIdx.y * size;
    f32 all = gridDim.y > 1 ? 0.0f : total[c];
    for (u32 w = 0; w < 32; ++w) all += sums[w][lane];
    total[c] = all;
}
