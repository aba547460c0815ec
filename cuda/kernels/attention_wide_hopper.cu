// Attention over a packed stream of sequences, forward, on Hopper, of heads of 256.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T     lse (queries, heads) f32
//
// CACHED: each segment has a cache of its own (cache.cuh), and k and v are there, of layer `layer`.
//
// attention_hopper.cu, where registers have no room for what it holds: the sums of 64 rows of 256 take half of a group's. So
// half of the dimensions of q is in shared memory, steps are of 64 keys, and the ring is one of tiles, k of a step and then v of
// the step before, as they are multiplied: each is given back when its own products are done.
//
// Order: steps of 64 keys counted from the segment's first, with a running maximum; within a step scores are sums over D in
// steps of 16 (wgmma), the sum of p that of a lane's 16 keys and then of 4 lanes, p v a sum over the keys in steps of 16.
// A query's bits depend on its own keys alone: the same in training and decoding.
// p is rounded to T before it multiplies v; its sum is of the unrounded.
// Contract: written (=). Bound by arithmetic, 4 D a pair of query and key, in training; by reading k and v in decoding.
// A product of 64 rows and 64 keys that both lie in shared memory takes as long to read as to multiply: hence half of q at most.
//
// Macros: T (bf16 or f16), D (256), GROUPS (of four warps that multiply, each 64 rows), CAP (whether scores are capped before
// the softmax, or scaled by no positive number), CACHED (defined or not).
// Source: as attention_hopper.cu.
#include "running.cuh"
#include "tile_hopper.cuh"

const u32 SLOTS = 6;                   // tiles in the ring
const u32 KEPT = D / 2;                // dimensions of q in registers
const u32 REST = (D - KEPT) / 64;      // boxes of the others

// sums += p v, asked for.
__device__ __forceinline__ void add_values(f32 (&sums)[D / 8][4], u32 (&fp)[STEP / 16][4], u32 tile) {
    settle(sums);
    settle(fp);
    products_begin();
#pragma unroll
    for (u32 j = 0; j < STEP / 16; ++j) group_multiply<true>(sums, fp[j], behind(factor<true>(tile, 0), 2048 * j), T());
    products_commit();
}

// 64 GROUPS rows a block. A row is a query and a head of the group that shares keys.
// Shared memory: REST boxes of q for each group, SLOTS tiles of k and v, and 8 (2 SLOTS + 1) bytes.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_wide_hopper(
    T* out, f32* lse, const T* q,
#ifdef CACHED
    const Cache* caches, u32 layer, const u32* cu_q, const u32* k_len,
#else
    const T* k, const T* v, const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v,
    const u32* cu_q, const u32* k_start, const u32* k_len, const u32* pages,
#endif
    Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory), ring = shared + GROUPS * REST * BOX;
    const u32 full = ring + SLOTS * TILE_BYTES, empty = full + 8 * SLOTS, landed = empty + 8 * SLOTS;
    const Piece piece = piece_of_rows(o);
#ifdef CACHED
    const Cache& own = caches[piece.segment];
    const TensorMap &map_k = *(const TensorMap*)own.map, &map_v = map_k;
    const Segment s = segment(piece.segment, cu_q, k_len, own, layer);
#else
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, pages, o);
#endif
    const u32 share = o.heads / o.kv_heads, g = piece.head, rows = s.queries * share;
    const u32 row0 = piece.number * 64 * GROUPS;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64 * GROUPS, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / STEP, last = visible(s, o, last_row / share).last;
    const u32 steps = (last + STEP - 1) / STEP - first;
    auto place = [&](u32 r) { return (u64)(s.q_start + r / share) * o.heads + g * share + r % share; };
    auto tile = [&](u32 t) { return ring + t % SLOTS * TILE_BYTES; };
    auto wait = [&](u32 t) { barrier_wait(full + 8 * (t % SLOTS), t / SLOTS & 1); };

    begin_ring<SLOTS>(full, 1, 4 * GROUPS, 1);
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<24>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
#ifdef CACHED
        if (lane == 0) acquire_map(&map_k);
#endif
        if (lane < 32)
            for (u32 t = 0; t < 2 * steps; ++t) {
                const bool values = t > 0 && (t % 2 == 0 || t == 2 * steps - 1);
                const u32 key0 = (first + (values ? t - 1 : t + 1) / 2) * STEP, keys = s.keys - key0;
                const u32 to = tile(t), there = full + 8 * (t % SLOTS);
                barrier_wait(empty + 8 * (t % SLOTS), t / SLOTS & 1 ^ 1);  // at first at once
#ifndef CACHED
                if (pages && keys < TILE) {
                    load_rest(to, BOX, values ? v : k, s, key0, g, o);
                    fence_asynchronous();
                    __syncwarp();
                    if (lane == 0) barrier_arrive(there);
                    continue;
                }
#endif
                // Scores of what comes from behind the segment's end are hidden; but 0 times it need not be 0.
                const bool rest = values && keys < TILE;
                if (lane == 0) {
                    const u32 barrier = rest ? landed : there;
                    barrier_expect(barrier, TILE_BYTES);
                    load_tile(to, values ? &map_v : &map_k, barrier, g, s.key(key0) + (values ? s.apart : 0));
                }
                if (!rest) continue;
                barrier_wait(landed, 0);
                clear_rows<BOXES>(to, keys);
                fence_asynchronous();
                __syncwarp();
                if (lane == 0) barrier_arrive(there);
            }
        return;
    }

    if (GROUPS == 2) claim_registers<240>();
    // From one lane, so that the compiler sees that a warp has one: then what is found by it is found once for all lanes.
    const u32 group = __shfl_sync(ALL_LANES, threadIdx.x / GROUP, 0), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 tq = shared + group * REST * BOX;
#pragma unroll
    for (u32 i = threadIdx.x % GROUP; i < REST * 512; i += GROUP) {
        const u32 r = i / (REST * 8), c = i % (REST * 8), row = row0 + 64 * group + r;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (row < rows) chunk = *(const uint4*)(q + place(row) * D + KEPT + 8 * c);
        store_chunk(tq + c / 8 * BOX + tile_at<64>(r, c % 8), chunk);
    }
    fence_asynchronous();
    group_meet(1 + group);
    const u64 queries = factor<false>(tq, 0);
    // This lane's two rows, the first dimensions of their queries as left factors, and the keys they see.
    u32 fq[KEPT / 16][4];
    Span spans[2];
    u64 places[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        spans[e] = r < rows ? visible(s, o, r / share) : Span{0, 0};
        places[e] = place(r);
#pragma unroll
        for (u32 x = 0; x < KEPT / 16; ++x)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                fq[x][2 * half + e] = r < rows ? *(const u32*)(q + places[e] * D + 16 * x + lane % 4 * 2 + 8 * half) : 0;
    }
    f32 sums[D / 8][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32}, total[2] = {};
    f32 scores[STEP / 8][4];
    u32 fp[STEP / 16][4];
    auto release = [&](u32 t) {
        if (lane == 0) barrier_arrive(empty + 8 * (t % SLOTS));
    };
    // A step's scores are asked for, p v of the step before after them; both run while the softmax waits for the first.
    for (u32 n = 0; n < steps; ++n) {
        const u32 t = n == 0 ? 0 : 2 * n - 1, key0 = (first + n) * STEP;
        if (n <= 1) wait(t);
#pragma unroll
        for (u32 j = 0; j < STEP / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) scores[j][e] = 0.0f;
        settle(scores);
        settle(fq);
        products_begin();
        const u64 keys = factor<false>(tile(t), 0);
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) {
            const u64 at = behind(keys, x / 4 * BOX + x % 4 * 32);
            const u32 y = x - KEPT / 16;
            if (x < KEPT / 16) group_multiply<false>(scores, fq[x], at, T());
            else group_multiply<false, false>(scores, behind(queries, y / 4 * BOX + y % 4 * 32), at, T());
        }
        products_commit();
        f32 shrink[2];
        if (n == 0) {
            products_wait<0>();
            settle(scores);
            release(t);
            take_scores(scores, top, total, shrink, spans, key0, o);
        } else {
            wait(t + 1);
            add_values(sums, fp, tile(t + 1));
            products_wait<1>();
            settle(scores);
            release(t);
            take_scores(scores, top, total, shrink, spans, key0, o);
            // As in attention_hopper.cu: without this branch the assembler would wait for p v before the softmax.
            if (n + 1 < steps) wait(t + 2);
            products_wait<0>();
            settle(sums);
            settle(fp);
            release(t + 1);
            // Times 1 they are what they are: where no row has a larger score than before, nothing is done.
            if (!__all_sync(ALL_LANES, shrink[0] == 1.0f && shrink[1] == 1.0f))
#pragma unroll
                for (u32 d = 0; d < D / 8; ++d)
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) sums[d][e] *= shrink[e / 2];
        }
#pragma unroll
        for (u32 j = 0; j < STEP / 16; ++j) rounded(fp[j], scores, j);
    }
    if (steps > 0) {
        wait(2 * steps - 1);
        add_values(sums, fp, tile(2 * steps - 1));
        products_wait<0>();
        settle(sums);
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        if (r < rows) finish_row(out, lse, places[e], sums, e, top[e], total[e], o);
    }
}
