// Attention of few rows over long caches, forward, on Hopper: decoding where a block for each segment and head leaves most of a
// card idle.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v in caches (cache.cuh), of layer `layer`     lse (queries, heads) f32
//
// attention_long.cu says why and how; here the bits are those of attention_hopper.cu, whose steps are of 128 keys, and, of heads
// of 256, of attention_wide_hopper.cu, whose steps are of 64. The rows are those of one warp: the other three of a group multiply
// zeros, as they do there.
//
// Memory between the two kernels: of each segment and key/value head, for each step its scores as lanes hold them, 16 blocks
// of keys (of heads of 256, 8) x 32 lanes x 2 of 8 rows (8 STEP f32; twice that if there are more rows), and the largest of each
// of 16 rows.
// Contract: written (=). Bound by reading k and v; the chain of products takes about as long as a block takes to read its
// columns of v.
//
// Macros: T (bf16 or f16), D (size of a head: 64, 128 or 256).
// Source: as attention_long.cu.
#include "running.cuh"
#include "tile_hopper.cuh"

const u32 ROWS = 16;                    // at most: queries times heads of a group
const u32 HALVES = STEP / TILE;         // boxes of 64 keys of a step: two, or one of large heads
const u32 STEP_SCORES = STEP / 8 * 64;  // of 8 rows
const u32 STAGES = 3;                   // steps of k
const u32 ROUND = 4;                    // steps at a time of attention_values_hopper: one a warp
const u32 RING = 3 * ROUND;             // steps of 64 columns of v

// A segment and head of keys: its rows, and the steps that any of them sees.
struct Work {
    Segment s;
    u32 group, g, heads, rows, first, steps;
    u64 number;  // of (segment, head)

    // Element 0 of row r: query r / group, head g * group + r % group.
    __device__ __forceinline__ u64 place(u32 r) const {
        return (u64)(s.q_start + r / group) * heads + g * group + r % group;
    }
    __device__ __forceinline__ u32 key(u32 step) const { return (first + step) * STEP; }
    // Boxes of 64 keys that a step has.
    __device__ __forceinline__ u32 halves(u32 step) const { return HALVES > 1 && s.keys - key(step) > TILE ? HALVES : 1; }
    __device__ __forceinline__ bool whole(u32 step) const { return key(step) + STEP <= s.keys; }
    // Keys of a half.
    __device__ __forceinline__ u32 keys(u32 step, u32 half) const {
        return min(TILE, s.keys - min(s.keys, key(step) + half * TILE));
    }
};

// `room`: steps that there is memory for.
__device__ __forceinline__ Work work_of(const Segment& s, u32 room, const Options& o) {
    Work w = {s, o.heads / o.kv_heads, blockIdx.x, o.heads, 0, 0, 0, (u64)blockIdx.z * o.kv_heads + blockIdx.x};
    w.rows = s.queries * w.group;
    if (w.rows == 0) return w;
    w.first = visible(s, o, 0).first / STEP;
    w.steps = (visible(s, o, s.queries - 1).last + STEP - 1) / STEP - w.first;
    if (w.steps > room) asm volatile("trap;");  // recorded over shorter caches
    return w;
}

// Mbarriers of a ring: each counts one arrival, and the bytes that it announces.
__device__ __forceinline__ void make_barriers(u32 full, u32 count, const TensorMap* map) {
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < count; ++i) barrier_init(full + 8 * i, 1);
        fence_asynchronous();
        acquire_map(map);
    }
    __syncthreads();
}

// A block takes every gridDim.y-th step. Shared memory: STAGES steps of k, and 8 STAGES bytes.
// Grid: (heads of keys, any, segments).
extern "C" __global__ void __launch_bounds__(GROUP) attention_scores_hopper(
    f32* scores, f32* tops, const T* q, const Cache* caches, u32 layer, const u32* cu_q, const u32* k_len, u32 room,
    u32 halves, Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 bytes = HALVES * TILE_BYTES, ring = shared_address(memory), full = ring + STAGES * bytes;
    const Cache& own = caches[blockIdx.z];
    const TensorMap& map = *(const TensorMap*)own.map;
    const Work w = work_of(segment(blockIdx.z, cu_q, k_len, own, layer), room, o);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto number = [&](u32 n) { return blockIdx.y + n * gridDim.y; };
    // For each 64 dimensions the boxes of all halves of the keys, so that rows go on.
    auto box = [&](u32 n, u32 half, u32 b) { return ring + n % STAGES * bytes + (HALVES * b + half) * BOX; };
    auto stage = [&](u32 n) {
        const u32 step = number(n);
        if (threadIdx.x > 0 || step >= w.steps) return;
        const u32 to = full + 8 * (n % STAGES);
        barrier_expect(to, w.halves(step) * BOXES * BOX);
        for (u32 half = 0; half < w.halves(step); ++half)
#pragma unroll
            for (u32 b = 0; b < BOXES; ++b)
                load_box(box(n, half, b), &map, to, 64 * b, w.g, (u32)w.s.key(w.key(step) + half * TILE));
    };
    make_barriers(full, STAGES, &map);
    for (u32 n = 0; n < STAGES; ++n) stage(n);
    // This lane's two rows, their queries as left factors, and the keys they see.
    u32 fq[D / 16][4];
    Span spans[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = warp * 16 + lane / 4 + 8 * e;
        spans[e] = r < w.rows ? visible(w.s, o, r / w.group) : Span{0, 0};
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                fq[x][2 * half + e] = r < w.rows ? *(const u32*)(q + w.place(r) * D + 16 * x + lane % 4 * 2 + 8 * half) : 0;
    }
    for (u32 n = 0; number(n) < w.steps; ++n) {
        const u32 step = number(n);
        barrier_wait(full + 8 * (n % STAGES), n / STAGES & 1);
        if (!w.whole(step)) {
            // Nobody sees what comes behind the keys, but products read it.
            if (warp < HALVES)
                for (u32 b = 0; b < BOXES; ++b) clear_rows<1>(box(n, warp, b), w.keys(step, warp));
            fence_asynchronous();
            __syncthreads();
        }
        f32 own[STEP / 8][4] = {};
        settle(own);
        settle(fq);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) group_multiply<false>(own, fq[x], factor<false>(box(n, 0, x / 4), x % 4), T());
        products_commit();
        products_wait<0>();
        settle(own);
        settle(fq);
        __syncthreads();  // nobody multiplies these keys any more
        stage(n + STAGES);
        if (warp > 0) continue;
        f32 top[2] = {-INFINITY_F32, -INFINITY_F32};
        hide_scores(own, spans, w.key(step), o);
        raise(top, own);
        if (lane % 4 == 0)
            for (u32 e = 0; e < 2; ++e) tops[(w.number * room + step) * ROWS + lane / 4 + 8 * e] = top[e];
        f32* to = scores + (w.number * room + step) * halves * STEP_SCORES;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 b = 0; b < STEP / 8; ++b)
                if (half < halves)
                    *(float2*)(to + half * STEP_SCORES + (b * 32 + lane) * 2) =
                        make_float2(own[b][2 * half], own[b][2 * half + 1]);
    }
}

// A block has 64 columns of o. In each round a warp makes the probabilities of one step, and the group adds the steps of the
// round, in order. Shared memory: RING steps of v, 4 steps of probabilities of 128 bytes a key, 512 bytes, and 8 RING bytes.
// Grid: (heads of keys, D / 64, segments).
extern "C" __global__ void __launch_bounds__(GROUP, 1) attention_values_hopper(
    T* out, f32* lse, const f32* scores, const f32* tops, const Cache* caches, u32 layer, const u32* cu_q,
    const u32* k_len, u32 room, u32 halves, Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 ring = shared_address(memory);
    uint4* probabilities = (uint4*)(memory + RING * HALVES * BOX);  // (step, 16 keys, lane): left factors
    f32(*shrinks)[ROWS] = (f32(*)[ROWS])(probabilities + ROUND * (STEP / 16) * 32);
    f32(*added)[ROWS] = shrinks + ROUND;
    const u32 full = shared_address(added + ROUND);
    const Cache& cache = caches[blockIdx.z];
    const TensorMap& map = *(const TensorMap*)cache.map;
    const Work w = work_of(segment(blockIdx.z, cu_q, k_len, cache, layer), room, o);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.y * 64;
    auto box = [&](u32 step, u32 half) { return ring + (step % RING * HALVES + half) * BOX; };
    auto stage = [&](u32 round) {
        if (threadIdx.x > 0) return;
        for (u32 step = ROUND * round; step < min(w.steps, ROUND * (round + 1)); ++step) {
            const u32 to = full + 8 * (step % RING);
            barrier_expect(to, w.halves(step) * BOX);
            for (u32 half = 0; half < w.halves(step); ++half)
                load_box(box(step, half), &map, to, column, w.g, (u32)w.s.key(w.key(step) + half * TILE) + w.s.apart);
        }
    };
    // Of the next round: this warp's scores, and the largest of all its steps.
    f32 own[STEP / 8][4], ahead[ROUND][2];
    auto look = [&](u32 round) {
        const u32 mine = ROUND * round + warp;
        const f32* from = scores + (w.number * room + mine) * halves * STEP_SCORES;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 b = 0; b < STEP / 8; ++b) {
                float2 two = make_float2(-INFINITY_F32, -INFINITY_F32);
                if (mine < w.steps && half < halves) two = *(const float2*)(from + half * STEP_SCORES + (b * 32 + lane) * 2);
                own[b][2 * half] = two.x;
                own[b][2 * half + 1] = two.y;
            }
#pragma unroll
        for (u32 u = 0; u < ROUND; ++u)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const u32 step = ROUND * round + u;
                ahead[u][e] = step < w.steps ? tops[(w.number * room + step) * ROWS + lane / 4 + 8 * e] : -INFINITY_F32;
            }
    };
    make_barriers(full, RING, &map);
    stage(0);
    stage(1);
    look(0);
    f32 sums[8][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32}, total[2] = {};
    for (u32 round = 0; ROUND * round < w.steps; ++round) {
        f32 before[2], next[2], shrink[2], sum[2];
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            before[e] = next[e] = top[e];
#pragma unroll
            for (u32 u = 0; u < ROUND; ++u) {
                if (u < warp) before[e] = fmaxf(before[e], ahead[u][e]);
                if (u <= warp) next[e] = fmaxf(next[e], ahead[u][e]);
                top[e] = fmaxf(top[e], ahead[u][e]);
            }
        }
        make_powers(own, before, next, shrink, sum, o);
        __syncthreads();  // nobody reads what the last round left in shared memory
        stage(round + 2);
#pragma unroll
        for (u32 j = 0; j < STEP / 16; ++j) {
            u32 fp[4];
            rounded(fp, own, j);
            probabilities[(warp * (STEP / 16) + j) * 32 + lane] = make_uint4(fp[0], fp[1], fp[2], fp[3]);
        }
        if (lane % 4 == 0)
            for (u32 e = 0; e < 2; ++e) {
                shrinks[warp][lane / 4 + 8 * e] = shrink[e];
                added[warp][lane / 4 + 8 * e] = sum[e];
            }
        look(round + 1);
        __syncthreads();
        for (u32 u = 0; u < ROUND && ROUND * round + u < w.steps; ++u) {
            const u32 step = ROUND * round + u;
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const f32 factor = shrinks[u][lane / 4 + 8 * e];
                total[e] = fmaf(total[e], factor, added[u][lane / 4 + 8 * e]);
#pragma unroll
                for (u32 d = 0; d < 8; ++d) {
                    sums[d][2 * e] *= factor;
                    sums[d][2 * e + 1] *= factor;
                }
            }
            u32 fp[STEP / 16][4];
#pragma unroll
            for (u32 j = 0; j < STEP / 16; ++j) {
                const uint4 p = warp == 0 ? probabilities[(u * (STEP / 16) + j) * 32 + lane] : make_uint4(0, 0, 0, 0);
                fp[j][0] = p.x;
                fp[j][1] = p.y;
                fp[j][2] = p.z;
                fp[j][3] = p.w;
            }
            barrier_wait(full + 8 * (step % RING), step / RING & 1);
            if (!w.whole(step)) {
                // 0 times what comes behind the keys need not be 0.
                if (warp < HALVES) clear_rows<1>(box(step, warp), w.keys(step, warp));
                fence_asynchronous();
                __syncthreads();
            }
            settle(sums);
            settle(fp);
            products_begin();
#pragma unroll
            for (u32 j = 0; j < STEP / 16; ++j)
                group_multiply<true>(sums, fp[j], factor<true>(box(step, j / 4), j % 4), T());
            products_commit();
            products_wait<0>();
            settle(sums);
            settle(fp);
        }
    }
    if (warp > 0) return;
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = lane / 4 + 8 * e;
        if (r >= w.rows) continue;
        finish_sums(out + w.place(r) * D + column, sums, e, total[e]);
        if (blockIdx.y == 0) finish_lse(lse, w.place(r), top[e], total[e], o);
    }
}
