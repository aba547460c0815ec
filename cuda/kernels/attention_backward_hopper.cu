// Attention, backward, on Hopper: scores and probabilities are made again from lse.
//
//   P = e^(s - lse),  dP = dO V^T,  delta_i = dO_i . O_i,  dS = P (dP - delta) cap'(s)
//   dV = P^T dO,  dQ = dS K,  dK = dS^T Q
//
//   q, dout, dq (queries, heads, D) T     k, v, dk, dv (keys, kv_heads, D) T     lse, delta (queries, heads) f32
//
// The two kernels of attention_backward.cu with tiles that the copy engine brings and products of four warps. In both, what
// is made of a tile of scores is the left factor of the next product just as a lane holds it, so P and dS go through
// registers only and no sum crosses warps. A warp of its own fills a ring of tiles. Of a segment's last tile it clears what
// lies behind the segment's end: P is 0 there, but 0 times anything need not be 0.
//
// Order: dQ in tiles of 64 keys counted from the segment's first; dK and dV over the heads that share the key, one after
// another, of each in blocks of 64 queries counted from the segment's first; each sum in steps of 16 (wgmma) onto one
// accumulator in f32. So a row's bits depend on its segment alone. P and dS / scale are rounded to T before they multiply.
// Contract: written (=). Bound by arithmetic: 14 D a pair of query and key, or 8 D with STORED.
//
// With STORED the kernel of dK and dV also stores dS, of which attention_scores_hopper.cu makes dQ by one product instead of
// three.
//
// Macros: T (bf16 or f16), D (64 or 128), CAP (whether there is a soft-cap), GROUPS (of four warps that multiply, each 64
// rows or keys), STORED (of a head of 128: dS is stored).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 2, split in two; Shah et al., FlashAttention-3,
// arXiv:2407.08608, for the producer.
#include "backward_hopper.cuh"

const u32 STAGES = 3;

#ifndef STORED
// dQ, 64 GROUPS rows a block, a row being a query and a head of the group that shares keys.
// Shared memory: STAGES tiles of k and of v, and 8 (2 STAGES + 1) bytes.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_dq_hopper(
    T* dq, const T* dout, const T* q, const f32* lse, const f32* delta, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const u32* cu_q, const u32* k_start, const u32* k_len, Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory), full = shared + 2 * STAGES * TILE_BYTES, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES;
    const Piece piece = piece_of_rows(o);
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const u32 share = o.heads / o.kv_heads, g = piece.head, rows = s.queries * share;
    const u32 row0 = piece.number * 64 * GROUPS;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64 * GROUPS, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / TILE, last = visible(s, o, last_row / share).last;
    const u32 tiles = (last + TILE - 1) / TILE;

    begin_ring<STAGES>(full, 1, 4 * GROUPS, 1);
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<24>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
        if (lane < 32)
            for (u32 tile = first; tile < tiles; ++tile) {
                const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES;
                const bool whole = (tile + 1) * TILE <= s.keys;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                if (lane == 0) {
                    const u32 to = whole ? full + 8 * i : landed;
                    barrier_expect(to, 2 * TILE_BYTES);
                    load_tile(tk, &map_k, to, g, s.key(tile * TILE));
                    load_tile(tk + TILE_BYTES, &map_v, to, g, s.key(tile * TILE));
                }
                if (whole) continue;
                barrier_wait(landed, 0);
                clear_rows<2 * BOXES>(tk, s.keys - tile * TILE);
                fence_asynchronous();
                __syncwarp();
                if (lane == 0) barrier_arrive(full + 8 * i);
            }
        return;
    }

    if (GROUPS == 2) claim_registers<240>();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Factors by = factors(o);
    // This lane's two rows, their queries and gradients as left factors, and the keys they see.
    u32 fq[D / 16][4], fo[D / 16][4];
    Span spans[2];
    u64 places[2];
    f32 shift[2], level[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        const bool valid = r < rows;
        spans[e] = valid ? visible(s, o, r / share) : Span{0, 0};
        places[e] = (u64)(s.q_start + r / share) * o.heads + g * share + r % share;
        shift[e] = valid ? lse[places[e]] * LOG2_E : 0.0f;
        level[e] = valid ? delta[places[e]] : 0.0f;
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u64 at = places[e] * D + 16 * x + lane % 4 * 2 + 8 * half;
                fq[x][2 * half + e] = valid ? *(const u32*)(q + at) : 0;
                fo[x][2 * half + e] = valid ? *(const u32*)(dout + at) : 0;
            }
    }
    f32 sums[D / 8][4] = {};
    for (u32 tile = first; tile < tiles; ++tile) {
        const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES, tv = tk + TILE_BYTES;
        barrier_wait(full + 8 * i, n / STAGES & 1);
        f32 p[TILE / 8][4] = {}, ds[TILE / 8][4] = {};
        settle(p);
        settle(ds);
        settle(fq);
        settle(fo);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) group_multiply<false>(p, fq[x], factor<false>(tk + x / 4 * BOX, x % 4), T());
        products_commit();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) group_multiply<false>(ds, fo[x], factor<false>(tv + x / 4 * BOX, x % 4), T());
        products_commit();
        // The scores are there, and so is dQ of the tile before, whose stage is free.
        products_wait<1>();
        settle(p);
        if (n > 0 && lane == 0) barrier_arrive(empty + 8 * ((n - 1) % STAGES));
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) probability(p[j][e], by.exponent, shift[e / 2], o);
        if (!all_seen(spans, tile * TILE, TILE))
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (u32 e = 0; e < 4; ++e)
                    if (!spans[e / 2].has(tile * TILE + 8 * j + lane % 4 * 2 + e % 2)) p[j][e] = 0.0f;
        settle(p);  // or the compiler would wait before all of it
        products_wait<0>();
        settle(ds);
        u32 fs[TILE / 16][4];
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) score_gradient(ds[j][e], p[j][e], shift[e / 2], level[e / 2], o);
#pragma unroll
            for (u32 e = 0; e < 2; ++e) fs[j / 2][j % 2 * 2 + e] = pair<T>(ds[j][2 * e], ds[j][2 * e + 1]);
        }
        settle(sums);
        settle(fs);
        products_begin();
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sums, fs[j], factor<true>(tk, j), T());
        products_commit();
    }
    products_wait<0>();
    settle(sums);
#pragma unroll
    for (u32 e = 0; e < 2; ++e)
        if (row0 + warp * 16 + lane / 4 + 8 * e < rows)
            store_sums(dq + places[e] * D, sums, e, by.end);
}

#endif

// dK and dV: everything transposed, so that a lane owns two keys.
// 64 GROUPS keys a block. Shared memory: GROUPS tiles of k and of v, STAGES tiles of q
// and of dout, 512 bytes for each stage (LOG2_E lse and delta of its queries), and 8 (2 STAGES + 2) bytes.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_dkv_hopper(
    T* dk, T* dv, const f32* lse, const f32* delta, const __grid_constant__ TensorMap map_q,
    const __grid_constant__ TensorMap map_dout, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const u32* cu_q, const u32* k_start, const u32* k_len,
#ifdef STORED
    T* scores, Stored stored,
#endif
    Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory), ring = shared + 2 * GROUPS * TILE_BYTES;
    const u32 levels = ring + 2 * STAGES * TILE_BYTES, full = levels + 512 * STAGES, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES, kept = landed + 8;
#ifdef STORED
    const Piece piece = piece_of_keys(stored);
#else
    const Piece piece = piece_of_keys(o.kv_heads);
#endif
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const u32 share = o.heads / o.kv_heads, g = piece.head, key0 = piece.number * TILE * GROUPS;
    if (key0 >= s.keys) return;
    // Queries that see a key of this block: a query's span moves to the right with the query.
    const u32 behind = s.keys - min(s.keys, s.queries);
    const u32 start = o.causal && key0 > behind ? key0 - behind : 0;
    const u32 end = o.window ? min((u64)s.queries, (u64)key0 + TILE * GROUPS + o.window) : s.queries;
    const u32 first = start / TILE, blocks = (end + TILE - 1) / TILE;

    // Full when the copies are asked for, and when the levels are there.
    begin_ring<STAGES>(full, 2, 4 * GROUPS, 2);
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<24>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
        if (lane >= 32) return;
        if (lane == 0) {
            // What a tile brings from behind the segment's end stays in rows that are not written.
            barrier_expect(kept, 2 * GROUPS * TILE_BYTES);
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) {
                load_tile(shared + 2 * i * TILE_BYTES, &map_k, kept, g, s.key(key0 + i * TILE));
                load_tile(shared + (2 * i + 1) * TILE_BYTES, &map_v, kept, g, s.key(key0 + i * TILE));
            }
        }
        u32 n = 0, rests = 0;
        for (u32 h = g * share; h < (g + 1) * share; ++h)
            for (u32 block = first; block < blocks; ++block, ++n) {
                const u32 i = n % STAGES, tq = ring + 2 * i * TILE_BYTES;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                const Stage to = {tq, levels + 512 * i, full + 8 * i, landed};
                load_queries(to, rests, &map_q, &map_dout, lse, delta, s, block, h, o);
            }
        return;
    }

    if (GROUPS == 2) claim_registers<240>();
    const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, group = threadIdx.x / GROUP;
    const u32 tk = shared + 2 * group * TILE_BYTES, tv = tk + TILE_BYTES, own0 = key0 + group * TILE;
    const Factors by = factors(o);
    f32 sk[D / 8][4] = {}, sv[D / 8][4] = {};
    settle(sk);
    settle(sv);
    barrier_wait(kept, 0);
    u32 n = 0;
    for (u32 h = 0; h < share; ++h)
        for (u32 block = first; block < blocks; ++block, ++n) {
            const u32 i = n % STAGES, tq = ring + 2 * i * TILE_BYTES, to = tq + TILE_BYTES;
            barrier_wait(full + 8 * i, n / STAGES & 1);
            f32 p[TILE / 8][4] = {}, ds[TILE / 8][4] = {};
            settle(p);
            settle(ds);
            products_begin();
#pragma unroll
            for (u32 x = 0; x < D / 16; ++x)
                group_multiply<false, false>(
                    p, factor<false>(tk + x / 4 * BOX, x % 4), factor<false>(tq + x / 4 * BOX, x % 4), T());
            products_commit();
#pragma unroll
            for (u32 x = 0; x < D / 16; ++x)
                group_multiply<false, false>(
                    ds, factor<false>(tv + x / 4 * BOX, x % 4), factor<false>(to + x / 4 * BOX, x % 4), T());
            products_commit();
            // The scores are there, and so is dK of the block before, whose stage is free.
            products_wait<1>();
            settle(p);
            if (n > 0 && lane == 0) barrier_arrive(empty + 8 * ((n - 1) % STAGES));
            u32 fp[TILE / 16][4], fs[TILE / 16][4];
    #pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j) {
                const float2 log = pair_at(levels + 512 * i + 4 * (8 * j + lane % 4 * 2));
#pragma unroll
                for (u32 e = 0; e < 4; ++e) probability(p[j][e], by.exponent, e % 2 ? log.y : log.x, o);
            }
            hide_queries(p, own0, block * TILE + behind, o);
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) fp[j / 2][j % 2 * 2 + e] = pair<T>(p[j][2 * e], p[j][2 * e + 1]);
            settle(p);
            settle(fp);
            products_begin();
#pragma unroll
            for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sv, fp[j], factor<true>(to, j), T());
            products_commit();
            products_wait<1>();
            settle(ds);
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j) {
                const float2 level = pair_at(levels + 512 * i + 256 + 4 * (8 * j + lane % 4 * 2));
                f32 log[2] = {};
                if (CAP) {
                    const float2 again = pair_at(levels + 512 * i + 4 * (8 * j + lane % 4 * 2));
                    log[0] = again.x, log[1] = again.y;
                }
#pragma unroll
                for (u32 e = 0; e < 4; ++e)
                    score_gradient(ds[j][e], p[j][e], CAP ? log[e % 2] : 0.0f, e % 2 ? level.y : level.x, o);
#pragma unroll
                for (u32 e = 0; e < 2; ++e) fs[j / 2][j % 2 * 2 + e] = pair<T>(ds[j][2 * e], ds[j][2 * e + 1]);
            }
            settle(fs);
            products_begin();
#pragma unroll
            for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sk, fs[j], factor<true>(tq, j), T());
            products_commit();
#ifdef STORED
            // While that is multiplied.
            store_scores(scores, stored, fs, s, piece.segment, own0, block, g * share + h, o);
#endif
            products_wait<1>();  // dV: its left factor's registers are wanted
        }
    products_wait<0>();
    settle(sv);
    settle(sk);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 key = own0 + warp * 16 + lane / 4 + 8 * e;
        if (key >= s.keys) continue;
        const u64 at = (s.key(key) * o.kv_heads + g) * D;
        store_sums(dk + at, sk, e, by.end);
        store_sums(dv + at, sv, e, 1.0f);
    }
}
