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
// filled by atomics, a row may be split among blocks, and still nothing depends on timing or on the split. 2^44 times
// 2^19 tokens is within 64 bits; what is rounded away, 2^-45 a token, is less than one draw of u resolves.
//
// A row is split into stretches of 8192 ids, a block each, and each step is a launch:
//   top      the largest logit of each stretch; and of top-k the first count
//   count    11, 11 and 10 bits of the keys of a threshold (of top-k, then of top-p), from the top: a histogram of tokens
//            or of weights; no sort. Each block finds by itself where the histogram of the step before it reached its goal
//   sums     what is kept of each stretch
//   draw     a block a row: the stretch that u falls into, and the token in it
// Temperature 0 takes the largest, the first of equals: top and draw are enough.
// Contract: tokens are written (=). Bound by reading the row 2 + 3 times for each threshold, out of L2 if it holds all rows;
// for few rows by the latency of a block and its launch, and without thresholds by exponentials in f64.
#include "keys.cuh"
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

__device__ __forceinline__ u64 weight_of(f32 z, f32 top, f64 temperature) {
    const f64 far = ((f64)z - (f64)top) / temperature;
    // e^-32 2^44 + 1/2 is less than 1; where most tokens are that far, most of the work is not done.
    return far < -32.0 ? 0 : (u64)(exp(far) * ONE + 0.5);
}

const u32 THREADS = 512, SHARE = 16, STRETCH = THREADS * SHARE, BINS = 2048, MOST_STRETCHES = 64;

// What is known of a row's threshold before a step.
struct State {
    u32 floor;   // keys below it are dropped by the threshold before
    u32 prefix;  // the upper bits of the key that is sought
    u64 above;   // the measure (tokens or weights) of the keys above all that begin with prefix
    u64 goal;    // the measure to be reached
};

// What is kept of a stretch: the weights of keys above the floor, and how many keys equal it.
struct Part {
    u64 sum, equal;
};

struct Place {
    u32 row, stretch, begin;
    const f32* logits;
};

__device__ __forceinline__ u32 stretches_of(u32 width) { return (width + STRETCH - 1) / STRETCH; }

__device__ __forceinline__ Place place(const f32* logits, u32 width) {
    const u32 count = stretches_of(width), row = blockIdx.x / count, stretch = blockIdx.x % count;
    return {row, stretch, stretch * STRETCH, logits + (u64)row * width};
}

// v[k] = the logit of id first + k / 4 * step + k % 4, if there is one.
__device__ __forceinline__ void share(f32 (&v)[SHARE], const f32* row, u32 first, u32 step, u32 width) {
    if (aligned(row) && width % 4 == 0) {
#pragma unroll
        for (u32 k = 0; k < SHARE; k += 4) {
            const u32 i = first + k / 4 * step;
            const float4 four = i < width ? *(const float4*)(row + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            v[k] = four.x, v[k + 1] = four.y, v[k + 2] = four.z, v[k + 3] = four.w;
        }
    } else {
#pragma unroll
        for (u32 k = 0; k < SHARE; ++k) {
            const u32 i = first + k / 4 * step + k % 4;
            v[k] = i < width ? row[i] : 0.0f;
        }
    }
}

// The thread's share of a stretch, where a warp's lie side by side.
__device__ __forceinline__ void read(f32 (&v)[SHARE], const Place& at, u32 width) {
    share(v, at.logits, at.begin + 4 * threadIdx.x, 4 * THREADS, width);
}

// Runs f(logit, id) for it.
template <class Do> __device__ __forceinline__ void for_share(const f32 (&v)[SHARE], const Place& at, u32 width, Do f) {
#pragma unroll
    for (u32 k = 0; k < SHARE; ++k) {
        const u32 i = at.begin + 4 * threadIdx.x + k / 4 * 4 * THREADS + k % 4;
        if (i < width) f(v[k], i);
    }
}

// Larger for larger logits, and of equals for the first.
const u64 NOT_A_NUMBER = 0xffffffffffffffffull;
__device__ __forceinline__ u64 candidate(f32 z, u32 i) { return z != z ? NOT_A_NUMBER : (u64)key_of(z) << 32 | ~i; }

__device__ __forceinline__ u64 warp_most(u64 v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = max(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// Step j: its digit, and whether it weighs. Top-k, if it is on, has the first three.
__device__ __forceinline__ bool weighs(const Sampling& s, u32 step) { return s.top_k == 0 || step >= 3; }
__device__ __forceinline__ u32 bits_of(u32 step) { return step % 3 == 2 ? 10 : 11; }
__device__ __forceinline__ u32 shift_of(u32 step) { return step % 3 == 0 ? 21 : step % 3 == 1 ? 10 : 0; }

// The key's first digit is counted along where top-k is to come; bins (rows, BINS) are null where not.
extern "C" __global__ __launch_bounds__(THREADS) void sampling_top(u64* tops, u64* bins, const f32* logits, u32 width) {
    __shared__ u64 warps[THREADS / 32];
    __shared__ u32 counts[BINS];
    const Place at = place(logits, width);
    f32 v[SHARE];
    read(v, at, width);
    for (u32 b = threadIdx.x; b < BINS; b += THREADS) counts[b] = 0;
    u64 most = 0;
    for_share(v, at, width, [&](f32 z, u32 i) { most = max(most, candidate(z, i)); });
    most = warp_most(most);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 w = 1; w < THREADS / 32; ++w) most = max(most, warps[w]);
        tops[blockIdx.x] = most;
    }
    if (!bins) return;
    for_share(v, at, width, [&](f32 z, u32) {
        atomicAdd(&counts[key_of(z) >> shift_of(0)], 1u);  // integers
    });
    __syncthreads();
    for (u32 b = threadIdx.x; b < BINS; b += THREADS)
        if (counts[b] > 0) atomicAdd(&bins[(u64)at.row * BINS + b], (u64)counts[b]);  // integers
}

// The largest of a row, in every thread; false if it is no distribution.
__device__ __forceinline__ bool largest(const u64* tops, u32 row, u32 width, f32& top, u32& id) {
    const u32 count = stretches_of(width);
    u64 most = 0;
#pragma unroll
    for (u32 i = threadIdx.x % 32; i < MOST_STRETCHES; i += 32)
        if (i < count) most = max(most, tops[row * count + i]);
    most = warp_most(most);
    top = logit_of((u32)(most >> 32));
    id = ~(u32)most;
    return most != NOT_A_NUMBER && top != INFINITY_F32 && top != -INFINITY_F32;
}

// What a step finds: what was known before the last step, and the thread's bins of what that counted, from the top.
// states (steps + 1, rows), bins (steps, rows, BINS).
const u32 OWN = BINS / THREADS;
struct Found {
    State before;
    u64 counted[OWN];
};

__device__ __forceinline__ Found find(
    const State* states, const u64* bins, const Sampling& s, u32 step, const Place& at, u32 rows) {
    Found found = {{0, 0, 0, s.top_k}, {}};
    if (step > 1) found.before = states[(u64)(step - 1) * rows + at.row];
    if (step == 0) return found;
    const u64* counted = bins + ((u64)(step - 1) * rows + at.row) * BINS + BINS - 1 - threadIdx.x * OWN;
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) found.counted[k] = *(counted - k);
    return found;
}

// What is known before `step`: the first key from the top at which the measure reaches its goal begins with the bin
// that does so.
__device__ __forceinline__ State advance(const Found& found, const Sampling& s, u32 step, u64* scratch) {
    State now = found.before;
    if (step == 0) return now;
    u64 sum = 0, all;
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) sum += found.counted[k];
    u64 measure = now.above + sum_before<THREADS>(sum, scratch, all);
    // The total is known when the first digit was counted.
    if (weighs(s, step - 1) && step % 3 == 1) now.goal = min(all, max((u64)1, (u64)ceil(s.top_p * (f64)all)));
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < OWN; ++k) {
        if (measure < now.goal && measure + found.counted[k] >= now.goal)
            scratch[0] = BINS - 1 - threadIdx.x * OWN - k, scratch[1] = measure;
        measure += found.counted[k];
    }
    __syncthreads();
    now.prefix = now.prefix << bits_of(step - 1) | (u32)scratch[0];
    now.above = scratch[1];
    __syncthreads();
    if (step % 3 == 0) {
        now.floor = now.prefix;
        now.prefix = 0;
        // Another threshold begins.
        if (!weighs(s, step - 1)) now.above = now.goal = 0;
    }
    return now;
}

// The row's first block keeps what is known.
__device__ __forceinline__ void keep(State* states, const State& now, u32 step, const Place& at, u32 rows) {
    if (at.stretch == 0 && threadIdx.x == 0 && step > 0) states[(u64)step * rows + at.row] = now;
}

extern "C" __global__ __launch_bounds__(THREADS) void sampling_count(
    State* states, u64* bins, const u64* tops, const f32* logits, Sampling s, u32 step, u32 rows) {
    __shared__ u32 low[BINS], high[BINS];
    __shared__ u64 scratch[THREADS / 32];
    // A block is short: all that it reads is on its way before the first is used.
    const Place at = place(logits, s.width);
    f32 v[SHARE], top;
    u32 id;
    read(v, at, s.width);
    const Found found = find(states, bins, s, step, at, rows);
    for (u32 b = threadIdx.x; b < BINS; b += THREADS) low[b] = high[b] = 0;
    if (!largest(tops, at.row, s.width, top, id)) {
        keep(states, found.before, step, at, rows);
        return;
    }
    const State now = advance(found, s, step, scratch);
    keep(states, now, step, at, rows);
    __syncthreads();
    const u32 shift = shift_of(step), bits = bits_of(step);
    const bool by_weight = weighs(s, step);
    for_share(v, at, s.width, [&](f32 z, u32) {
        const u32 key = key_of(z), bin = key >> shift & ((1u << bits) - 1);
        if (key < now.floor || (step % 3 > 0 && key >> shift >> bits != now.prefix)) return;
        if (!by_weight) {
            atomicAdd(&low[bin], 1u);  // integers
            return;
        }
        const u64 w = weight_of(z, top, s.temperature);
        if (w == 0) return;
        // There is no atomic sum of 64 bits in shared memory but by trying again and again: halves, with a carry.
        const u32 before = atomicAdd(&low[bin], (u32)w);  // integers
        const u32 carried = (u32)(w >> 32) + (before + (u32)w < before);
        if (carried > 0) atomicAdd(&high[bin], carried);  // integers
    });
    __syncthreads();
    u64* to = bins + ((u64)step * rows + at.row) * BINS;
    for (u32 b = threadIdx.x; b < BINS; b += THREADS) {
        const u64 sum = (u64)high[b] << 32 | low[b];
        if (sum > 0) atomicAdd(&to[b], sum);  // integers
    }
}

__device__ __forceinline__ u64 least_of(const Sampling& s) { return s.min_p > 0.0 ? (u64)ceil(s.min_p * ONE) : 0; }

extern "C" __global__ __launch_bounds__(THREADS) void sampling_sums(
    Part* parts, State* states, const u64* bins, const u64* tops, const f32* logits, Sampling s, u32 steps, u32 rows) {
    __shared__ u64 scratch[32];
    const Place at = place(logits, s.width);
    f32 v[SHARE], top;
    u32 id;
    read(v, at, s.width);
    const Found found = find(states, bins, s, steps, at, rows);
    if (!largest(tops, at.row, s.width, top, id)) return;
    const State now = advance(found, s, steps, scratch);
    keep(states, now, steps, at, rows);
    const u64 least = least_of(s);
    u64 sum = 0, equal = 0;
    for_share(v, at, s.width, [&](f32 z, u32) {
        const u32 key = key_of(z);
        equal += key == now.floor;
        if (key <= now.floor) return;
        const u64 w = weight_of(z, top, s.temperature);
        sum += w >= least ? w : 0;
    });
    sum = block_sum(sum, scratch);
    equal = block_sum(equal, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = {sum, equal};
}

// Rung 1: as the head says; this is the last step. parts and states are not looked at where temperature is 0.
extern "C" __global__ __launch_bounds__(THREADS) void sampling_draw(
    u32* tokens, const Part* parts, const State* states, const u64* tops, const f32* logits, const Draw* draws, Sampling s,
    u32 steps, u32 rows) {
    __shared__ u64 scratch[THREADS / 32];
    __shared__ Part part[MOST_STRETCHES];
    const u32 row = blockIdx.x, count = stretches_of(s.width);
    f32 top;
    u32 id;
    const bool is_one = largest(tops, row, s.width, top, id);
    if (!is_one || s.temperature == 0.0) {
        if (threadIdx.x == 0) tokens[row] = is_one ? id : 0xffffffffu;
        return;
    }
    if (threadIdx.x < count) part[threadIdx.x] = parts[row * count + threadIdx.x];
    __syncthreads();

    // Kept: keys above the floor, and of those equal to it the first `ties`.
    const u64 least = least_of(s);
    u32 floor = 0;
    u64 ties = 0xffffffffu, each = 0;
    if (steps > 0) {
        const State now = states[(u64)steps * rows + row];
        floor = now.floor;
        each = weight_of(logit_of(floor), top, s.temperature);
        // As many as it takes to reach top-p's goal.
        const u64 one = max((u64)1, each);
        if (s.top_p < 1.0) ties = now.goal > now.above ? (now.goal - now.above + one - 1) / one : 1;
        if (each < least) each = 0;
    }
    const auto kept_of = [&](const Part& p, u64 seen) { return p.sum + each * min(p.equal, ties > seen ? ties - seen : 0); };
    u64 all = 0, seen = 0;
    for (u32 i = 0; i < count; ++i) {
        all += kept_of(part[i], seen);
        seen += part[i].equal;
    }
    const Draw d = draws[row];
    const u64 goal = min(all - 1, (u64)(random_uniform(d.seed, 4, d.step, d.index) * (f64)all));
    u64 start = 0;
    u32 stretch = 0;
    seen = 0;
    for (; stretch + 1 < count; ++stretch) {
        const u64 kept = kept_of(part[stretch], seen);
        if (goal < start + kept) break;
        start += kept;
        seen += part[stretch].equal;
    }

    // Each thread takes ids that follow each other, so that the cumulative sums run in order of id.
    f32 v[SHARE];
    u64 w[SHARE], equal = 0, sum = 0, none;
    const u32 first = stretch * STRETCH + threadIdx.x * SHARE;
    share(v, logits + (u64)row * s.width, first, 4, s.width);
#pragma unroll
    for (u32 k = 0; k < SHARE; ++k) equal += first + k < s.width && key_of(v[k]) == floor;
    seen += sum_before<THREADS>(equal, scratch, none);
#pragma unroll
    for (u32 k = 0; k < SHARE; ++k) {
        const u32 key = key_of(v[k]);
        const bool kept = first + k < s.width && (key > floor || (key == floor && seen++ < ties));
        w[k] = kept ? weight_of(v[k], top, s.temperature) : 0;
        if (w[k] < least) w[k] = 0;
        sum += w[k];
    }
    start += sum_before<THREADS>(sum, scratch, none);
    if (goal < start || goal >= start + sum) return;
    bool found = false;
#pragma unroll
    for (u32 k = 0; k < SHARE; ++k) {
        start += w[k];
        if (!found && goal < start) tokens[row] = first + k, found = true;
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
