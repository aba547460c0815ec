// Attention over a packed stream of sequences, forward, on Hopper: no score matrix in memory.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T     lse (queries, heads) f32
//
// CACHED: each segment has a cache of its own (cache.cuh), and k and v are there, of layer `layer`.
//
// The attention of attention.cu, in training, prefill and decoding, in steps of 128 keys that the copy engine brings and
// products of four warps. A warp of its own fills a ring of steps of k and v. Of a stream's last step it clears what lies
// behind the segment's end: a box brings the next segment's keys, or what a cache held before, which may be anything, and 0
// times anything need not be 0. Of a paged cache's last page, whose rest may never have been written, it loads by itself
// what there is. q and p are left factors and stay in registers. While the softmax of a step is made, the step before is
// multiplied with v.
//
// Order: steps of 128 keys counted from the segment's first, with a running maximum; within a step scores are sums over D in
// steps of 16 (wgmma), the sum of p that of a lane's 32 keys and then of 4 lanes, p v a sum over the keys in steps of 16.
// A query's bits depend on its own keys alone: the same in training and decoding.
// p is rounded to T before it multiplies v; its sum is of the unrounded.
// Contract: written (=). Bound by arithmetic, 4 D a pair of query and key, in training; by reading k and v in decoding.
//
// Macros: T (bf16 or f16), D (size of a head: 64 or 128), GROUPS (of four warps that multiply, each 64 rows), CAP (whether
// scores are capped before the softmax, or scaled by no positive number), CACHED (defined or not).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; Shah et al., FlashAttention-3, arXiv:2407.08608, for the
// producer and for the overlap of softmax and products.
#include "running.cuh"
#include "tile_hopper.cuh"

const u32 STAGES = 3;
const u32 STAGE = 4 * TILE_BYTES;  // bytes
// In a stage: of k, for each 64 dimensions the boxes of both halves of the keys, so that rows go on; then the halves of v,
// each with its boxes.
__device__ __forceinline__ u32 key_box(u32 stage, u32 half, u32 b) { return stage + (2 * b + half) * BOX; }
__device__ __forceinline__ u32 value_box(u32 stage, u32 half, u32 b) {
    return stage + 2 * TILE_BYTES + half * TILE_BYTES + b * BOX;
}

// sums += p v, asked for.
__device__ __forceinline__ void add_values(f32 (&sums)[D / 8][4], u32 (&fp)[STEP / 16][4], u32 stage) {
    settle(sums);
    settle(fp);
    products_begin();
#pragma unroll
    for (u32 j = 0; j < STEP / 16; ++j)
        group_multiply<true>(sums, fp[j], factor<true>(value_box(stage, j / 4, 0), j % 4), T());
    products_commit();
}

// 64 GROUPS rows a block. A row is a query and a head of the group that shares keys.
// Shared memory: STAGES stages, and 8 (2 STAGES + 1) bytes.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_hopper(
    T* out, f32* lse, const T* q,
#ifdef CACHED
    const Cache* caches, u32 layer, const u32* cu_q, const u32* k_len,
#else
    const T* k, const T* v, const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v,
    const u32* cu_q, const u32* k_start, const u32* k_len, const u32* pages,
#endif
    Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory), full = shared + STAGES * STAGE, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES;
    const Piece piece = piece_of_rows(o);
#ifdef CACHED
    const Cache& own = caches[piece.segment];
    const TensorMap &map_k = *(const TensorMap*)own.map, &map_v = map_k;
    const Segment s = segment(piece.segment, cu_q, k_len, own, layer);
    const bool paged = false;
#else
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, pages, o);
    const bool paged = pages;
#endif
    const u32 share = o.heads / o.kv_heads, g = piece.head, rows = s.queries * share;
    const u32 row0 = piece.number * 64 * GROUPS;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64 * GROUPS, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / STEP, last = visible(s, o, last_row / share).last;
    const u32 steps = (last + STEP - 1) / STEP;

    begin_ring<STAGES>(full, 1, 4 * GROUPS, 1);
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<40>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
#ifdef CACHED
        if (lane == 0) acquire_map(&map_k);
#endif
        if (lane < 32)
            for (u32 step = first; step < steps; ++step) {
                const u32 n = step - first, i = n % STAGES, stage = shared + i * STAGE, key0 = step * STEP;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                const bool whole = key0 + STEP <= s.keys, rest = !whole && paged;
                // A half without keys is not asked for.
                const u32 halves = s.keys - key0 > TILE ? 2 : 1;
                if (lane == 0 && !rest) {
                    const u32 to = whole ? full + 8 * i : landed;
                    barrier_expect(to, halves * 2 * TILE_BYTES);
                    for (u32 half = 0; half < halves; ++half) {
                        const u32 row = s.key(key0 + half * TILE);
#pragma unroll
                        for (u32 b = 0; b < BOXES; ++b) {
                            load_box(key_box(stage, half, b), &map_k, to, 64 * b, g, row);
                            load_box(value_box(stage, half, b), &map_v, to, 64 * b, g, row + s.apart);
                        }
                    }
                }
                if (whole) continue;
                if (!rest) barrier_wait(landed, 0);
                for (u32 half = 0; half < 2; ++half) {
#ifndef CACHED
                    if (rest) {
                        load_rest(key_box(stage, half, 0), 2 * BOX, k, s, key0 + half * TILE, g, o);
                        load_rest(value_box(stage, half, 0), BOX, v, s, key0 + half * TILE, g, o);
                        continue;
                    }
#endif
                    const u32 keys = s.keys - min(s.keys, key0 + half * TILE);
                    if (keys >= TILE) continue;
#pragma unroll
                    for (u32 b = 0; b < BOXES; ++b) clear_rows<1>(key_box(stage, half, b), keys);
                    clear_rows<BOXES>(value_box(stage, half, 0), keys);
                }
                fence_asynchronous();
                __syncwarp();
                if (lane == 0) barrier_arrive(full + 8 * i);
            }
        return;
    }

    if (GROUPS == 2) claim_registers<232>();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // This lane's two rows, their queries as left factors, and the keys they see.
    u32 fq[D / 16][4];
    Span spans[2];
    u64 places[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        spans[e] = r < rows ? visible(s, o, r / share) : Span{0, 0};
        places[e] = (u64)(s.q_start + r / share) * o.heads + g * share + r % share;
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                fq[x][2 * half + e] = r < rows ? *(const u32*)(q + places[e] * D + 16 * x + lane % 4 * 2 + 8 * half) : 0;
    }
    f32 sums[D / 8][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32}, total[2] = {};
    f32 scores[STEP / 8][4];
    u32 fp[STEP / 16][4];
    // A step's scores are asked for, p v of the step before after them; both run while the softmax waits for the first.
    for (u32 step = first; step < steps; ++step) {
        const u32 n = step - first, i = n % STAGES, stage = shared + i * STAGE;
        if (n <= 1) barrier_wait(full + 8 * i, 0);
#pragma unroll
        for (u32 j = 0; j < STEP / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) scores[j][e] = 0.0f;
        settle(scores);
        settle(fq);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
            group_multiply<false>(scores, fq[x], factor<false>(key_box(stage, 0, x / 4), x % 4), T());
        products_commit();
        f32 shrink[2];
        if (n == 0) {
            products_wait<0>();
            settle(scores);
            take_scores(scores, top, total, shrink, spans, step * STEP, o);
        } else {
            const u32 before = (n - 1) % STAGES;
            add_values(sums, fp, shared + before * STAGE);
            products_wait<1>();
            settle(scores);
            take_scores(scores, top, total, shrink, spans, step * STEP, o);
            // Where the next step is waited for the assembler begins another stretch of code: in one with the softmax, it
            // would wait for p v before all of that.
            if (step + 1 < steps) barrier_wait(full + 8 * ((n + 1) % STAGES), (n + 1) / STAGES & 1);
            products_wait<0>();
            settle(sums);
            settle(fp);
            if (lane == 0) barrier_arrive(empty + 8 * before);
#pragma unroll
            for (u32 d = 0; d < D / 8; ++d)
#pragma unroll
                for (u32 e = 0; e < 4; ++e) sums[d][e] *= shrink[e / 2];
        }
#pragma unroll
        for (u32 j = 0; j < STEP / 16; ++j) rounded(fp[j], scores, j);
    }
    if (first < steps) {
        add_values(sums, fp, shared + (steps - first - 1) % STAGES * STAGE);
        products_wait<0>();
        settle(sums);
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e)
        if (row0 + warp * 16 + lane / 4 + 8 * e < rows) finish_row(out, lse, places[e], sums, e, top[e], total[e], o);
}
