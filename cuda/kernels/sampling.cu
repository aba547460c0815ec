// A token from each row of logits: temperature, top-k, top-p, min-p, then a draw.
//
//   w_v = e^((z_v - max z) / temperature);  top-k keeps the k largest and those equal to the k-th;
//   top-p keeps the most probable until they reach p of the total (of equals the lower ids first);  min-p keeps w >= min_p
//   (max w = 1);  the token is where the cumulative w, in order of id, passes u times the total; u from Philox, as on
//   the CPU (random_uniform(seed, 4, step, index)).
//
//   logits (rows, width) f32     tokens (rows) u32, 0xffffffff where a logit is NaN or the largest is infinite
//   draws (rows): seed, step, index
//
// Weights are fixed-point integers, round(w 2^44): integers add up to the same in any order, so histograms may be
// filled by atomics and still nothing depends on timing. 2^44 times 2^19 tokens is within 64 bits; what is rounded
// away, 2^-45 a token, is less than one draw of u resolves.
// Thresholds are found 8 bits of the key at a time, from the top: 4 histograms of 256 counts, no sort.
// Temperature 0 takes the largest, the first of equals.
// Contract: tokens are written (=). Bound by reading the row from L2, up to 11 times.
#include "philox.cuh"

struct Sampling {
    f64 temperature, top_p, min_p;
    u32 top_k;  // 0: off
    u32 width;
};

struct Draw {
    u64 seed, step, index;
};

const f64 ONE = 17592186044416.0;  // 2^44

// Larger number, larger key. Of the two zeros -0 would be smaller: they are made one.
__device__ __forceinline__ u32 key_of(f32 z) {
    const u32 bits = __float_as_uint(z == 0.0f ? 0.0f : z);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 weight_of(f32 z, f32 top, f64 temperature) {
    return (u64)(exp(((f64)z - (f64)top) / temperature) * ONE + 0.5);
}

// The sum over a block of integers, in every thread.
__device__ __forceinline__ u64 total_of(u64 v, u64* scratch) { return block_sum(v, scratch); }

// The key at which the measure of the keys from the top reaches `goal` (at most that of all), among keys >= `floor`. The
// measure is a count of tokens, or their weight. `above`: the measure of the keys above it.
__device__ __forceinline__ u32 threshold(
    const f32* row, f32 top, const Sampling& s, bool by_weight, u32 floor, u64 goal, u64* bins, u64* result, u64& above) {
    u32 prefix = 0;
    u64 passed = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (u32 b = threadIdx.x; b < 256; b += blockDim.x) bins[b] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < s.width; i += blockDim.x) {
            const f32 z = row[i];
            const u32 key = key_of(z);
            if (key < floor || (shift < 24 && key >> (shift + 8) != prefix)) continue;
            atomicAdd(&bins[key >> shift & 255], by_weight ? weight_of(z, top, s.temperature) : 1ull);  // integers
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 sum = passed;
            int b = 255;
            while (b > 0 && sum + bins[b] < goal) sum += bins[b--];
            result[0] = b;
            result[1] = sum;
        }
        __syncthreads();
        prefix = prefix << 8 | (u32)result[0];
        passed = result[1];
        __syncthreads();
    }
    above = passed;
    return prefix;
}

// The first of the largest; nothing for a NaN or an infinite one.
__device__ __forceinline__ u32 largest(const f32* row, u32 width, f32* values, u32* places, f32& top) {
    f32 best = -INFINITY_F32;
    u32 at = 0xffffffffu;
    bool nan = false;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        nan |= row[i] != row[i];
        if (row[i] > best) best = row[i], at = i;
    }
    nan = __syncthreads_or(nan);
    top = block_max(best, values);
    at = best == top ? at : 0xffffffffu;
    for (int step = 16; step > 0; step /= 2) at = min(at, __shfl_xor_sync(ALL_LANES, at, step));
    if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = at;
    __syncthreads();
    for (u32 w = 0; w < blockDim.x / 32; ++w) at = min(at, places[w]);
    return nan || top == INFINITY_F32 || top == -INFINITY_F32 ? 0xffffffffu : at;
}

extern "C" __global__ void sampling(u32* tokens, const f32* logits, const Draw* draws, Sampling s) {
    __shared__ u64 bins[256], sums[32], result[2];
    __shared__ f32 values[32];
    __shared__ u32 places[32];
    const f32* row = logits + (u64)blockIdx.x * s.width;
    f32 top;
    const u32 best = largest(row, s.width, values, places, top);
    if (best == 0xffffffffu || s.temperature == 0.0) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = best;
        return;
    }

    // Kept: keys above `floor`, and of those equal to it the first `ties`.
    u32 floor = 0, ties = 0xffffffffu;
    u64 above;
    if (s.top_k > 0 && s.top_k < s.width) floor = threshold(row, top, s, false, 0, s.top_k, bins, result, above);
    if (s.top_p < 1.0) {
        u64 mine = 0;
        for (u32 i = threadIdx.x; i < s.width; i += blockDim.x)
            if (key_of(row[i]) >= floor) mine += weight_of(row[i], top, s.temperature);
        const u64 all = total_of(mine, sums);
        const u64 goal = min(all, max((u64)1, (u64)ceil(s.top_p * (f64)all)));
        floor = threshold(row, top, s, true, floor, goal, bins, result, above);
        // As many of the equals as it takes to reach the goal.
        const u32 bits = floor & 0x80000000u ? floor & 0x7fffffffu : ~floor;
        const u64 each = max((u64)1, weight_of(__uint_as_float(bits), top, s.temperature));
        ties = (u32)min((u64)0xffffffffu, goal > above ? (goal - above + each - 1) / each : 1);
    }

    // Each thread takes a stretch of ids, so that the cumulative sums run in order of id.
    const u32 stretch = (s.width + blockDim.x - 1) / blockDim.x;
    const u32 begin = min(s.width, threadIdx.x * stretch), end = min(s.width, begin + stretch);
    const u64 least = s.min_p > 0.0 ? (u64)ceil(s.min_p * ONE) : 0;
    u64* prefix = bins;  // one for each thread: there are 256
    u64 equal = 0;
    for (u32 i = begin; i < end; ++i) equal += key_of(row[i]) == floor;
    prefix[threadIdx.x] = equal;
    __syncthreads();
    u64 before = 0;
    for (u32 t = 0; t < threadIdx.x; ++t) before += prefix[t];
    __syncthreads();
    auto kept = [&](u32 i, u64& seen) -> u64 {
        const u32 key = key_of(row[i]);
        if (key < floor || (key == floor && seen++ >= ties)) return 0;
        const u64 w = weight_of(row[i], top, s.temperature);
        return w >= least ? w : 0;
    };
    u64 seen = before, sum = 0;
    for (u32 i = begin; i < end; ++i) sum += kept(i, seen);
    prefix[threadIdx.x] = sum;
    __syncthreads();
    u64 start = 0, all = 0;
    for (u32 t = 0; t < blockDim.x; ++t) {
        if (t == threadIdx.x) start = all;
        all += prefix[t];
    }
    const Draw d = draws[blockIdx.x];
    const f64 u = random_uniform(d.seed, 4, d.step, d.index);
    const u64 goal = min(all - 1, (u64)(u * (f64)all));
    if (goal < start || goal >= start + sum) return;
    seen = before;
    for (u32 i = begin; i < end; ++i) {
        start += kept(i, seen);
        if (goal < start) {
            tokens[blockIdx.x] = i;
            return;
        }
    }
}

// Rung 0: a thread a row, the same rules one after another; top-k and top-p by asking each token how much is above it.
extern "C" __global__ void sampling_naive(u32* tokens, const f32* logits, const Draw* draws, Sampling s, u32 rows) {
    const u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const f32* row = logits + (u64)r * s.width;
    f32 top = -INFINITY_F32;
    u32 best = 0xffffffffu;
    for (u32 i = 0; i < s.width; ++i) {
        if (row[i] != row[i]) best = 0xfffffffeu;
        if (best != 0xfffffffeu && row[i] > top) top = row[i], best = i;
    }
    tokens[r] = best >= 0xfffffffeu || top == INFINITY_F32 ? 0xffffffffu : best;
    if (tokens[r] == 0xffffffffu || s.temperature == 0.0) return;
    auto in_top_k = [&](u32 i) {
        u32 higher = 0;
        for (u32 j = 0; j < s.width; ++j) higher += key_of(row[j]) > key_of(row[i]);
        return s.top_k == 0 || higher < s.top_k;
    };
    auto weight = [&](u32 i) { return weight_of(row[i], top, s.temperature); };
    u64 total = 0;
    for (u32 i = 0; i < s.width; ++i) total += in_top_k(i) ? weight(i) : 0;
    const u64 goal = min(total, max((u64)1, (u64)ceil(s.top_p * (f64)total)));
    auto kept = [&](u32 i) -> u64 {
        if (!in_top_k(i) || weight(i) < (u64)ceil(s.min_p * ONE)) return 0;
        u64 before = 0;
        for (u32 j = 0; j < s.width; ++j) {
            const bool higher = key_of(row[j]) > key_of(row[i]) || (key_of(row[j]) == key_of(row[i]) && j < i);
            before += higher ? weight(j) : 0;
        }
        return s.top_p >= 1.0 || before < goal ? weight(i) : 0;
    };
    u64 all = 0, sum = 0;
    for (u32 i = 0; i < s.width; ++i) all += kept(i);
    const Draw d = draws[r];
    const u64 mark = min(all - 1, (u64)(random_uniform(d.seed, 4, d.step, d.index) * (f64)all));
    for (u32 i = 0; i < s.width; ++i) {
        sum += kept(i);
        if (mark < sum) {
            tokens[r] = i;
            return;
        }
    }
}
