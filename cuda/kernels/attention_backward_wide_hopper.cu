// Attention over a packed stream of sequences, backward, on Hopper, of heads of 256.
//
//   P = e^(s - lse),  dP = dO V^T,  delta_i = dO_i . O_i,  dS = P (dP - delta) cap'(s)
//   dV = P^T dO,  dQ = dS K,  dK = dS^T Q
//
//   q, dout, dq (queries, heads, D) T     k, v, dk, dv (keys, kv_heads, D) T     lse, delta (queries, heads) f32
//
// The kernels of attention_backward_hopper.cu, where registers have no room for what they hold: the sums of 64 rows of 256
// take half of a group's. So queries and gradients are left factors in shared memory, not in registers, and dK and dV are made by
// a group each, which both make the scores. That is a product more, 8 where 5 count, and far less than mma.sync takes for 7;
// with STORED 5 are made here, and dQ, the sixth, of what is stored.
//
// Order: as there. So a row's bits depend on its segment alone. P and dS / scale are rounded to T before they multiply.
// Contract: written (=). Bound by arithmetic: 16 D a pair of query and key, or 10 D with STORED.
//
// Macros: T (bf16 or f16), D (256), CAP (whether there is a soft-cap), STORED (dS is stored).
// Source: as attention_backward_hopper.cu.
#include "backward_hopper.cuh"

const u32 STAGES = 2;

#ifndef STORED
// dQ, 64 rows a block, a row being a query and a head of the group that shares keys.
// Shared memory: the rows of q and of dout, STAGES tiles of k and of v, and 8 (2 STAGES + 1) bytes.
extern "C" __global__ void __launch_bounds__(2 * GROUP, 1) attention_dq_wide_hopper(
    T* dq, const T* dout, const T* q, const f32* lse, const f32* delta, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const u32* cu_q, const u32* k_start, const u32* k_len, Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 tq = shared_address(memory), to = tq + TILE_BYTES, ring = to + TILE_BYTES;
    const u32 full = ring + 2 * STAGES * TILE_BYTES, empty = full + 8 * STAGES, landed = empty + 8 * STAGES;
    const Piece piece = piece_of_rows(o);
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const u32 share = o.heads / o.kv_heads, g = piece.head, rows = s.queries * share, row0 = piece.number * 64;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / TILE, last = visible(s, o, last_row / share).last;
    const u32 tiles = (last + TILE - 1) / TILE;
    auto place = [&](u32 r) { return (u64)(s.q_start + r / share) * o.heads + g * share + r % share; };

    begin_ring<STAGES>(full, 1, 4, 1);
    for (u32 i = threadIdx.x; i < 2 * 64 * D / 8; i += 2 * GROUP) {
        const u32 which = i / (64 * D / 8), r = i / (D / 8) % 64, c = i % (D / 8);
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (row0 + r < rows) chunk = *(const uint4*)((which ? dout : q) + place(row0 + r) * D + 8 * c);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tq + which * TILE_BYTES + c / 8 * BOX + tile_at<64>(r, c % 8)),
                     "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w)
                     : "memory");
    }
    fence_asynchronous();
    __syncthreads();
    if (threadIdx.x >= GROUP) {
        const u32 lane = threadIdx.x - GROUP;
        if (lane < 32)
            for (u32 tile = first; tile < tiles; ++tile) {
                const u32 n = tile - first, i = n % STAGES, tk = ring + 2 * i * TILE_BYTES;
                const bool whole = (tile + 1) * TILE <= s.keys;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                if (lane == 0) {
                    const u32 there = whole ? full + 8 * i : landed;
                    barrier_expect(there, 2 * TILE_BYTES);
                    load_tile(tk, &map_k, there, g, s.key(tile * TILE));
                    load_tile(tk + TILE_BYTES, &map_v, there, g, s.key(tile * TILE));
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

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Factors by = factors(o);
    // This lane's two rows, and the keys they see.
    Span spans[2];
    f32 shift[2], level[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        const bool valid = r < rows;
        spans[e] = valid ? visible(s, o, r / share) : Span{0, 0};
        shift[e] = valid ? lse[place(r)] * LOG2_E : 0.0f;
        level[e] = valid ? delta[place(r)] : 0.0f;
    }
    f32 sums[D / 8][4] = {};
    for (u32 tile = first; tile < tiles; ++tile) {
        const u32 n = tile - first, i = n % STAGES, tk = ring + 2 * i * TILE_BYTES, tv = tk + TILE_BYTES;
        barrier_wait(full + 8 * i, n / STAGES & 1);
        f32 p[TILE / 8][4] = {}, ds[TILE / 8][4] = {};
        settle(p);
        settle(ds);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
            group_multiply<false, false>(p, factor<false>(tq + x / 4 * BOX, x % 4), factor<false>(tk + x / 4 * BOX, x % 4), T());
        products_commit();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
            group_multiply<false, false>(ds, factor<false>(to + x / 4 * BOX, x % 4), factor<false>(tv + x / 4 * BOX, x % 4), T());
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
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        if (r < rows) store_sums(dq + place(r) * D, sums, e, by.end);
    }
}

#endif

// Shared memory of a block of attention_dkv_wide_hopper.
struct Rings {
    u32 tk, tv, queries, levels, full, empty;
};

#ifdef STORED
// Where dS goes.
struct Scores {
    T* tiles;
    Stored at;
    u32 segment;
};
#endif

// One group's part: dV, or dK. For each its own code, as products of one code that branches would wait for one another.
template <bool VALUES> __device__ __forceinline__ void key_sums(
    T* out, const Rings& at, const Segment& s, u32 g, u32 key0, u32 first, u32 blocks,
#ifdef STORED
    const Scores& scores,
#endif
    const Options& o) {
    const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, share = o.heads / o.kv_heads;
    const u32 behind = s.keys - min(s.keys, s.queries);
    const Factors by = factors(o);
    f32 sums[D / 8][4] = {};
    settle(sums);
    u32 n = 0;
    for (u32 h = 0; h < share; ++h)
        for (u32 block = first; block < blocks; ++block, ++n) {
            const u32 i = n % STAGES, tq = at.queries + 2 * i * TILE_BYTES, to = tq + TILE_BYTES, levels = at.levels + 512 * i;
            barrier_wait(at.full + 8 * i, n / STAGES & 1);
            f32 p[TILE / 8][4] = {}, ds[TILE / 8][4] = {};
            settle(p);
            if (!VALUES) settle(ds);
            products_begin();
#pragma unroll
            for (u32 x = 0; x < D / 16; ++x)
                group_multiply<false, false>(
                    p, factor<false>(at.tk + x / 4 * BOX, x % 4), factor<false>(tq + x / 4 * BOX, x % 4), T());
            products_commit();
            if (!VALUES) {
#pragma unroll
                for (u32 x = 0; x < D / 16; ++x)
                    group_multiply<false, false>(
                        ds, factor<false>(at.tv + x / 4 * BOX, x % 4), factor<false>(to + x / 4 * BOX, x % 4), T());
                products_commit();
            }
            // The scores are there, and so are the sums of the block before, whose stage is free.
            products_wait<VALUES ? 0 : 1>();
            settle(p);
            if (n > 0 && lane == 0) barrier_arrive(at.empty + 8 * ((n - 1) % STAGES));
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j) {
                const float2 log = pair_at(levels + 4 * (8 * j + lane % 4 * 2));
#pragma unroll
                for (u32 e = 0; e < 4; ++e) probability(p[j][e], by.exponent, e % 2 ? log.y : log.x, o);
            }
            hide_queries(p, key0, block * TILE + behind, o);
            settle(p);
            if (!VALUES) {
                products_wait<0>();
                settle(ds);
            }
            u32 fa[TILE / 16][4];
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j) {
                if (!VALUES) {
                    const float2 level = pair_at(levels + 256 + 4 * (8 * j + lane % 4 * 2));
                    f32 log[2] = {};
                    if (CAP) {
                        const float2 again = pair_at(levels + 4 * (8 * j + lane % 4 * 2));
                        log[0] = again.x, log[1] = again.y;
                    }
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) {
                        score_gradient(ds[j][e], p[j][e], CAP ? log[e % 2] : 0.0f, e % 2 ? level.y : level.x, o);
                        p[j][e] = ds[j][e];
                    }
                }
#pragma unroll
                for (u32 e = 0; e < 2; ++e) fa[j / 2][j % 2 * 2 + e] = pair<T>(p[j][2 * e], p[j][2 * e + 1]);
            }
            settle(sums);
            settle(fa);
            products_begin();
#pragma unroll
            for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sums, fa[j], factor<true>(VALUES ? to : tq, j), T());
            products_commit();
#ifdef STORED
            if (!VALUES) store_scores(scores.tiles, scores.at, fa, s, scores.segment, key0, block, g * share + h, o);
#endif
        }
    products_wait<0>();
    settle(sums);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 key = key0 + warp * 16 + lane / 4 + 8 * e;
        if (key < s.keys) store_sums(out + (s.key(key) * o.kv_heads + g) * D, sums, e, VALUES ? 1.0f : by.end);
    }
}

// dK and dV of 64 keys a block, a group each; everything transposed, so that a lane owns two keys.
// Shared memory: a tile of k and of v, STAGES tiles of q and of dout, 512 bytes for each stage (LOG2_E lse and delta of its
// queries), and 8 (2 STAGES + 2) bytes.
extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_dkv_wide_hopper(
    T* dk, T* dv, const f32* lse, const f32* delta, const __grid_constant__ TensorMap map_q,
    const __grid_constant__ TensorMap map_dout, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const u32* cu_q, const u32* k_start, const u32* k_len,
#ifdef STORED
    T* tiles, Stored stored,
#endif
    Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 tk = shared_address(memory), tv = tk + TILE_BYTES, ring = tv + TILE_BYTES;
    const u32 levels = ring + 2 * STAGES * TILE_BYTES, full = levels + 512 * STAGES, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES, kept = landed + 8;
#ifdef STORED
    const Piece piece = piece_of_keys(stored);
#else
    const Piece piece = piece_of_keys(o.kv_heads);
#endif
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const u32 share = o.heads / o.kv_heads, g = piece.head, key0 = piece.number * TILE;
    if (key0 >= s.keys) return;
    // Queries that see a key of this block: a query's span moves to the right with the query.
    const u32 behind = s.keys - min(s.keys, s.queries);
    const u32 start = o.causal && key0 > behind ? key0 - behind : 0;
    const u32 end = o.window ? min((u64)s.queries, (u64)key0 + TILE + o.window) : s.queries;
    const u32 first = start / TILE, blocks = (end + TILE - 1) / TILE;

    // Full when the copies are asked for, and when the levels are there.
    begin_ring<STAGES>(full, 2, 8, 2);
    __syncthreads();
    if (threadIdx.x >= 2 * GROUP) {
        release_registers<24>();
        const u32 lane = threadIdx.x - 2 * GROUP;
        if (lane >= 32) return;
        if (lane == 0) {
            // What a tile brings from behind the segment's end stays in rows that are not written.
            barrier_expect(kept, 2 * TILE_BYTES);
            load_tile(tk, &map_k, kept, g, s.key(key0));
            load_tile(tv, &map_v, kept, g, s.key(key0));
        }
        u32 n = 0, rests = 0;
        for (u32 h = g * share; h < (g + 1) * share; ++h)
            for (u32 block = first; block < blocks; ++block, ++n) {
                const u32 i = n % STAGES;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                const Stage to = {ring + 2 * i * TILE_BYTES, levels + 512 * i, full + 8 * i, landed};
                load_queries(to, rests, &map_q, &map_dout, lse, delta, s, block, h, o);
            }
        return;
    }

    claim_registers<240>();
    barrier_wait(kept, 0);
    const Rings at = {tk, tv, ring, levels, full, empty};
#ifdef STORED
    const Scores scores = {tiles, stored, piece.segment};
    if (threadIdx.x < GROUP) key_sums<true>(dv, at, s, g, key0, first, blocks, scores, o);
    else key_sums<false>(dk, at, s, g, key0, first, blocks, scores, o);
#else
    if (threadIdx.x < GROUP) key_sums<true>(dv, at, s, g, key0, first, blocks, o);
    else key_sums<false>(dk, at, s, g, key0, first, blocks, o);
#endif
}
