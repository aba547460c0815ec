// Logits as whole numbers in the same order, to be counted, compared and sorted without ties.
#pragma once
#include "common.cuh"

// Larger number, larger key. Of the two zeros -0 would be smaller: they are made one.
__device__ __forceinline__ u32 key_of(f32 z) {
    const u32 bits = __float_as_uint(z == 0.0f ? 0.0f : z);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ f32 logit_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The sum over the threads before this one, and over all, of a block of THREADS. `warps`: one for each warp.
template <u32 THREADS> __device__ __forceinline__ u64 sum_before(u64 v, u64* warps, u64& all) {
    u64 upto = v;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(ALL_LANES, upto, step);
        if (threadIdx.x % 32 >= step) upto += other;
    }
    __syncthreads();  // somebody may still read what the last call left there
    if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = upto;
    __syncthreads();
    u64 before = upto - v;
    all = 0;
    for (u32 w = 0; w < THREADS / 32; ++w) {
        if (w < threadIdx.x / 32) before += warps[w];
        all += warps[w];
    }
    return before;
}
