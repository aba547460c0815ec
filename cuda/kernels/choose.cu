// The k largest scores of each row, in the order of their numbers: the experts of a token.
//
//   scores (rows, experts) f32     bias (experts) f32, or null for none     chosen (rows, k) u32
//
// Scores and bias are added in f64, as on the processor, and ordered as there (IEEE 754, totalOrder: NaN lies beyond the infinity
// of its sign); of equals the lower number is chosen.
//
// Order: nothing is summed but the two; whole numbers are compared. A row is a warp.
// Contract: written (=). Bound by latency: k rounds of five shuffles.
//
// Macros: PER (numbers of a lane: 32 PER is no less than the experts).
#include "common.cuh"

// Larger number, larger key, and no two numbers with one key.
__device__ __forceinline__ i64 order_of(double x) {
    const i64 bits = __double_as_longlong(x);
    return bits ^ (i64)((u64)(bits >> 63) >> 1);
}

// Of expert 32 i + lane the key is keys[i].
extern "C" __global__ void choose(u32* chosen, const f32* scores, const f32* bias, u32 rows, u32 experts, u32 k) {
    const u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    i64 keys[PER];
    // A bit of those that may be chosen, and of those that are.
    u32 left = 0, taken = 0;
#pragma unroll
    for (u32 i = 0; i < PER; ++i) {
        const u32 e = 32 * i + lane;
        keys[i] = 0;
        if (e >= experts) continue;
        const double score = scores[(u64)row * experts + e];
        keys[i] = order_of(bias ? score + (double)bias[e] : score + 0.0);
        left |= 1u << i;
    }
    for (u32 j = 0; j < k; ++j) {
        i64 best = 0;
        u32 number = ~0u;  // none
#pragma unroll
        for (u32 i = 0; i < PER; ++i)
            if (left >> i & 1 && (number == ~0u || keys[i] > best)) best = keys[i], number = 32 * i + lane;
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) {
            const i64 other = __shfl_xor_sync(ALL_LANES, best, step);
            const u32 its = __shfl_xor_sync(ALL_LANES, number, step);
            if (its != ~0u && (number == ~0u || other > best || (other == best && its < number)))
                best = other, number = its;
        }
        if (number % 32 == lane && number != ~0u) {
            left &= ~(1u << number / 32);
            taken |= 1u << number / 32;
        }
    }
    u32 at = 0;
#pragma unroll
    for (u32 i = 0; i < PER; ++i) {
        const u32 all = __ballot_sync(ALL_LANES, taken >> i & 1);
        if (taken >> i & 1) chosen[(u64)row * k + at + __popc(all & ((1u << lane) - 1))] = 32 * i + lane;
        at += __popc(all);
    }
}
