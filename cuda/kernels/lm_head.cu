// The language-model head without full logits: log-probabilities, and their gradient, tile after tile of the vocabulary.
//
//   z = cap(scale W h_r),  logprob_r = z_t - ln sum_v e^z_v,  entropy_r = ln sum e^z - sum p z    (nats)
//   logits (rows, width) f32: W h of the tokens first..first + width, made by matmul; `stride` elements from one row to
//   the next, so that decoding, which has whole rows at hand, takes the same tiles of them
//   states (rows, 4) f32: maximum, sum of e^(z - maximum), sum of z e^(z - maximum), the target's z
//   best, targets (rows) u32
//
// Order: tiles of the vocabulary in order, with a running maximum and sums per row; within a tile the sums of
// common.cuh. A row is one block, so it depends on itself alone.
// Contract: states and best are updated; logprobs, entropy, lse, dz are written (=).
// Bound by memory here (a read of the logits, that L2 holds); the whole op by the matrix products.
//
// Macros: T (type of dz).
#include "common.cuh"

__device__ __forceinline__ f32 capped(f32 z, f32 scale, f32 softcap) {
    z *= scale;
    return softcap == 0.0f ? z : softcap * tanhf(z / softcap);
}

extern "C" __global__ void lm_head_begin(f32* states, u32* best, u32 rows) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    states[4 * r] = -INFINITY_F32;
    states[4 * r + 1] = states[4 * r + 2] = states[4 * r + 3] = 0.0f;
    best[r] = 0xffffffffu;
}

// Rung 0: a thread a row.
extern "C" __global__ void lm_head_take_naive(
    f32* states, u32* best, const f32* logits, u64 stride, const u32* targets, u32 first, u32 rows, u32 width, f32 scale,
    f32 softcap) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    f32 top = states[4 * r], sum = states[4 * r + 1], weighted = states[4 * r + 2];
    for (u32 i = 0; i < width; ++i) {
        const f32 z = capped(logits[r * stride + i], scale, softcap);
        if (z > top) {
            const f32 shrink = expf(top - z);
            sum *= shrink;
            weighted *= shrink;
            top = z;
            best[r] = first + i;
        }
        sum += expf(z - top);
        weighted += z * expf(z - top);
        if (first + i == targets[r]) states[4 * r + 3] = z;
    }
    states[4 * r] = top;
    states[4 * r + 1] = sum;
    states[4 * r + 2] = weighted;
}

// Rung 1: a block a row, whose share of a tile is in the registers of its threads: at most 16 tokens each. Of rows that are
// there as a whole it takes tile after tile, `tile` tokens each.
extern "C" __global__ void lm_head_take(
    f32* states, u32* best, const f32* logits, u64 stride, const u32* targets, u32 first, u32 width, u32 tile, f32 scale,
    f32 softcap) {
    __shared__ f32 scratch[32];
    __shared__ u32 places[32];
    const f32* row = logits + blockIdx.x * stride;
    f32* state = states + 4 * blockIdx.x;
    f32 before = state[0], total = state[1], spread = state[2];
    for (u32 from = 0; from < width; from += tile) {
        const u32 here = min(tile, width - from);
        f32 top = -INFINITY_F32, kept[2][8];
        u32 at = 0xffffffffu;
#pragma unroll
        for (u32 p = 0; p < 2; ++p) {
            const u32 i = PACK * (threadIdx.x + p * blockDim.x);
            load8(kept[p], row + from + i, (i64)here - i);
        }
#pragma unroll
        for (u32 p = 0; p < 2; ++p)
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                const u32 i = PACK * (threadIdx.x + p * blockDim.x) + k;
                const f32 z = i < here ? capped(kept[p][k], scale, softcap) : -INFINITY_F32;
                if (z > top) top = z, at = i;
                kept[p][k] = z;
            }
        const f32 highest = block_max(top, scratch);
        // The first of equals.
        at = top == highest ? at : 0xffffffffu;
        for (int step = 16; step > 0; step /= 2) at = min(at, __shfl_xor_sync(ALL_LANES, at, step));
        if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = at;
        const f32 next = fmaxf(before, highest);
        f32 sum = 0.0f, weighted = 0.0f;
#pragma unroll
        for (u32 p = 0; p < 2; ++p)
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                if (PACK * (threadIdx.x + p * blockDim.x) + k >= here) break;
                const f32 z = kept[p][k], e = expf(z - next);
                sum += e;
                weighted += z * e;
            }
        sum = block_sum(sum, scratch);
        weighted = block_sum(weighted, scratch);
        if (threadIdx.x == 0) {
            const f32 shrink = expf(before - next);
            total = total * shrink + sum;
            spread = spread * shrink + weighted;
            if (highest > before) {
                for (u32 w = 1; w < blockDim.x / 32; ++w) at = min(at, places[w]);
                best[blockIdx.x] = first + from + at;
            }
        }
        before = next;
    }
    if (threadIdx.x > 0) return;
    state[0] = before;
    state[1] = total;
    state[2] = spread;
    const u32 target = targets[blockIdx.x];
    if (target >= first && target - first < width) state[3] = capped(row[target - first], scale, softcap);
}

extern "C" __global__ void lm_head_finish(f32* logprobs, f32* entropy, f32* lse, const f32* states, u32 rows) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const f32 sum = states[4 * r + 1], log = states[4 * r] + logf(sum);
    logprobs[r] = states[4 * r + 3] - log;
    if (entropy) entropy[r] = log - states[4 * r + 2] / sum;
    lse[r] = log;
}

// dz = dlogprob (onehot(target) - e^(z - lse)) cap'(z) scale, for the tokens of a tile; dlogprob is 1 if there is none.
extern "C" __global__ void lm_head_gradient(
    T* dz, const f32* logits, u64 stride, const u32* targets, const f32* lse, const f32* dlogprobs, u32 first, u32 width,
    f32 scale, f32 softcap) {
    const u64 row = (u64)blockIdx.x * width;
    logits += blockIdx.x * stride;
    const u32 target = targets[blockIdx.x];
    const f32 shift = lse[blockIdx.x], d = dlogprobs ? dlogprobs[blockIdx.x] : 1.0f;
    for (u32 i = PACK * threadIdx.x; i < width; i += PACK * blockDim.x) {
        f32 v[8];
        load8(v, logits + i, width - i);
        for (u32 k = 0; k < 8; ++k) {
            const f32 z = capped(v[k], scale, softcap), t = softcap == 0.0f ? 0.0f : z / softcap;
            const f32 hot = first + i + k == target ? 1.0f : 0.0f;
            v[k] = d * (hot - expf(z - shift)) * scale * (1.0f - t * t);
        }
        store8(dz + row + i, v, width - i);
    }
}

// logits = cap(scale logits), in place: for sampling, which wants them all.
extern "C" __global__ void lm_head_cap(f32* logits, f32 scale, f32 softcap, u64 n) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) logits[i] = capped(logits[i], scale, softcap);
}
