// The k most probable tokens of each row of logits, the most probable first; of equals the lower id.
//
//   logprob_j = (z_j - max z) / temperature - ln sum_v e^((z_v - max z) / temperature)    (nats)
//
//   logits (rows, width) f32, capped and scaled     ids (rows, k) u32     logprobs (rows, k) f32
//
// Of a logit and its id one number of 64 bits is made, larger for larger logits and of equals for the lower id: no two are
// alike, so the k largest are one set, and sorted they are one list. NaN is larger than all; a row that has one gives
// log-probabilities of NaN.
//
// Order: the sum is that of common.cuh over each thread's every 512th logit. The rest counts and compares whole numbers. A row
// is one block, so it depends on itself alone.
// Contract: written (=). Bound by reading the row 4 to 5 times, out of L2 if it holds the rows.
//
// Macros: none.
#include "keys.cuh"

const u32 THREADS = 512, BINS = 2048, MOST = 1024;  // MOST: the largest k

__device__ __forceinline__ u64 candidate(f32 z, u32 i) {
    return (u64)(z != z ? 0xffffffffu : key_of(z)) << 32 | (u32)~i;
}

__device__ __forceinline__ f32 share_of(f32 z, f32 top, f32 temperature) { return expf((z - top) / temperature); }

// Rung 0: a thread a row, which looks for one after another.
extern "C" __global__ void lm_head_top_naive(
    u32* ids, f32* logprobs, const f32* logits, u32 rows, u32 width, u32 k, f32 temperature) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const f32* row = logits + (u64)r * width;
    f32 top = 0.0f, log = 0.0f;
    u64 last = 0;
    for (u32 j = 0; j < k; ++j) {
        u64 most = 0;
        for (u32 i = 0; i < width; ++i) {
            const u64 one = candidate(row[i], i);
            if ((j == 0 || one < last) && one > most) most = one;
        }
        const f32 z = logit_of((u32)(most >> 32));
        if (j == 0) {
            f32 sum = 0.0f;
            for (u32 i = 0; i < width; ++i) sum += share_of(row[i], z, temperature);
            top = z;
            log = logf(sum);
        }
        ids[(u64)r * k + j] = ~(u32)most;
        logprobs[(u64)r * k + j] = (z - top) / temperature - log;
        last = most;
    }
}

// Rung 1: a block a row. The least number that is kept is found digit by digit from the top, by counting those that begin as
// it does: three digits are the logit, three more the id, which only ties need. Then the k are sorted in shared memory.
extern "C" __global__ void __launch_bounds__(THREADS) lm_head_top(
    u32* ids, f32* logprobs, const f32* logits, u32 width, u32 k, f32 temperature) {
    __shared__ u32 counts[BINS];
    __shared__ u64 scratch[32], kept[MOST];
    __shared__ u32 found[3], taken;
    __shared__ f32 sums[32];
    const f32* row = logits + (u64)blockIdx.x * width;
    // Wanted are all above those that begin with `prefix`, and of these the `goal` largest. `below`: bits after it.
    u64 prefix = 0;
    u32 goal = k, below = 64;
    for (u32 digit = 0; digit < 6; ++digit) {
        const u32 bits = digit % 3 == 2 ? 10 : 11, shift = below - bits;
        for (u32 b = threadIdx.x; b < BINS; b += THREADS) counts[b] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < width; i += THREADS) {
            const u64 one = candidate(row[i], i);
            if (digit == 0 || one >> below == prefix)
                atomicAdd(&counts[(u32)(one >> shift) & ((1u << bits) - 1)], 1u);  // integers
        }
        __syncthreads();
        // A thread's bins follow each other, from the top.
        const u32 own = BINS / THREADS, first = BINS - 1 - threadIdx.x * own;
        u32 sum = 0;
        for (u32 b = 0; b < own; ++b) sum += counts[first - b];
        u64 all, before = sum_before<THREADS>(sum, scratch, all);
        for (u32 b = 0; b < own; ++b) {
            const u32 here = counts[first - b];
            if (before < goal && before + here >= goal) found[0] = first - b, found[1] = (u32)before, found[2] = here;
            before += here;
        }
        __syncthreads();
        prefix = prefix << bits | found[0];
        goal -= found[1];
        below = shift;
        if (found[2] == goal) break;  // all that begin so
    }
    if (threadIdx.x == 0) taken = 0;
    u32 room = 1;
    while (room < k) room *= 2;
    for (u32 j = threadIdx.x; j < room; j += THREADS) kept[j] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        const u64 one = candidate(row[i], i);
        if (one >> below >= prefix) kept[atomicAdd(&taken, 1u)] = one;  // integers, and sorted after
    }
    // Bitonic: runs of 2, 4, … that alternately fall and rise are merged.
    for (u32 run = 2; run <= room; run *= 2)
        for (u32 apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (u32 j = threadIdx.x; j < room; j += THREADS) {
                const u32 other = j ^ apart;
                if (other <= j) continue;
                const u64 a = kept[j], b = kept[other];
                if ((a < b) == ((j & run) == 0)) kept[j] = b, kept[other] = a;
            }
        }
    __syncthreads();
    const f32 top = logit_of((u32)(kept[0] >> 32));
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += THREADS) sum += share_of(row[i], top, temperature);
    const f32 log = logf(block_sum(sum, sums));
    for (u32 j = threadIdx.x; j < k; j += THREADS) {
        ids[(u64)blockIdx.x * k + j] = ~(u32)kept[j];
        logprobs[(u64)blockIdx.x * k + j] = (logit_of((u32)(kept[j] >> 32)) - top) / temperature - log;
    }
}
