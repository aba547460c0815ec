// Sums over rows, a column a thread: gradients of weights.
//
// Rows are taken in blocks of 256. Each block of rows makes a partial sum, row after row; the partial sums are then
// added to the total in order. No atomics: the bits depend on the number of rows alone.
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
