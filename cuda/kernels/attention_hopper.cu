// Attention over a packed stream of sequences, forward, on Hopper: no score matrix in memory.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T     lse (queries, heads) f32
//
// CACHED: each segment has a cache of its own (cache.cuh), and k and v are there, of layer `layer`.
//
// The attention of attention.cu, in training, prefill and decoding, with tiles of 64 keys that the copy engine brings and
// products of four warps. A warp of its own fills a ring of tiles of k and v. Of a stream's last tile it clears what lies
// behind the segment's end: a box brings the next segment's keys, or what a cache held before, which may be anything, and 0
// times anything need not be 0. Of a paged cache's last page, whose rest may never have been written, it loads by itself what there is. q and p are left
// factors and stay in registers. While the softmax of a tile is made, the tile before is multiplied with v.
//
// Order: that of attention.cu: tiles of 64 keys counted from the segment's first, with a running maximum; within a tile
// scores are sums over D in steps of 16 (wgmma), the sum of p that of a lane's 16 keys and then of 4 lanes, p v a sum over
// the tile in steps of 16. A query's bits depend on its own keys alone: the same in training and decoding.
// p is rounded to T before it multiplies v; its sum is of the unrounded.
// Contract: written (=). Bound by arithmetic, 4 D a pair of query and key, in training; by reading k and v in decoding.
//
// Macros: T (bf16 or f16), D (size of a head: 64 or 128), GROUPS (of four warps that multiply, each 64 rows),
// CACHED (defined or not).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; Shah et al., FlashAttention-3, arXiv:2407.08608, for the
// producer and for the overlap of softmax and products.
#include "hopper.cuh"
#include "running.cuh"

const u32 STAGES = 3;
const u32 BOXES = D / 64;  // of a tile
const u32 TILE_BYTES = BOXES * BOX;

// Keys tile * TILE.. of k or v to shared memory by the warp's own loads; zeros behind the segment's end.
__device__ __forceinline__ void load_rest(u32 to, const T* from, const Segment& s, u32 tile, u32 g, const Options& o) {
    for (u32 i = threadIdx.x % 32; i < TILE * D / 8; i += 32) {
        const u32 r = i / (D / 8), c = i % (D / 8), j = tile * TILE + r;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (j < s.keys) chunk = *(const uint4*)(from + (s.key(j) * o.kv_heads + g) * D + c * 8);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + c / 8 * BOX + tile_at<64>(r, c % 8)),
                     "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w)
                     : "memory");
    }
}

// sums += p v, asked for.
__device__ __forceinline__ void add_values(f32 (&sums)[D / 8][4], u32 (&fp)[TILE / 16][4], u32 tv) {
    settle(sums);
    settle(fp);
    products_begin();
#pragma unroll
    for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sums, fp[j], factor<true>(tv, j), T());
    products_commit();
}

// Grid: (blocks of rows, key/value heads, segments). A row is a query and a head of the group that shares keys.
// Shared memory: STAGES tiles of k and of v, and 8 (2 STAGES + 1) bytes.
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
    const u32 shared = shared_address(memory), full = shared + 2 * STAGES * TILE_BYTES, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES;
#ifdef CACHED
    const Cache& own = caches[blockIdx.z];
    const TensorMap &map_k = *(const TensorMap*)own.map, &map_v = map_k;
    const Segment s = segment(blockIdx.z, cu_q, k_len, own, layer);
    const bool paged = false;
#else
    const Segment s = segment(blockIdx.z, cu_q, k_start, k_len, pages, o);
    const bool paged = pages;
#endif
    const u32 share = o.heads / o.kv_heads, g = blockIdx.y, rows = s.queries * share;
    // The last rows see most keys: they begin first.
    const u32 row0 = (gridDim.x - 1 - blockIdx.x) * 64 * GROUPS;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64 * GROUPS, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / TILE, last = visible(s, o, last_row / share).last;
    const u32 tiles = (last + TILE - 1) / TILE;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 4 * GROUPS);  // each warp that multiplies
        }
        barrier_init(landed, 1);
        fence_asynchronous();
    }
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<40>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
#ifdef CACHED
        if (lane == 0) acquire_map(&map_k);
#endif
        if (lane < 32)
            for (u32 tile = first; tile < tiles; ++tile) {
                const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES, tv = tk + TILE_BYTES;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                const bool whole = (tile + 1) * TILE <= s.keys, rest = !whole && paged;
                if (lane == 0 && !rest) {
                    const u32 row = s.key(tile * TILE), to = whole ? full + 8 * i : landed;
                    barrier_expect(to, 2 * TILE_BYTES);
#pragma unroll
                    for (u32 b = 0; b < BOXES; ++b) {
                        load_box(tk + b * BOX, &map_k, to, 64 * b, g, row);
                        load_box(tv + b * BOX, &map_v, to, 64 * b, g, row + s.apart);
                    }
                }
                if (whole) continue;
                if (rest) {
#ifndef CACHED
                    load_rest(tk, k, s, tile, g, o);
                    load_rest(tv, v, s, tile, g, o);
#endif
                } else {
                    barrier_wait(landed, 0);
                    clear_rows<2 * BOXES>(tk, s.keys - tile * TILE);
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
    f32 scores[TILE / 8][4];
    u32 fp[TILE / 16][4];
    // A tile's scores are asked for, p v of the tile before after them; both run while the softmax waits for the first.
    for (u32 tile = first; tile < tiles; ++tile) {
        const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES;
        if (n <= 1) barrier_wait(full + 8 * i, 0);
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) scores[j][e] = 0.0f;
        settle(scores);
        settle(fq);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) group_multiply<false>(scores, fq[x], factor<false>(tk + x / 4 * BOX, x % 4), T());
        products_commit();
        f32 shrink[2];
        if (n == 0) {
            products_wait<0>();
            settle(scores);
            take_scores(scores, top, total, shrink, spans, tile * TILE, o);
        } else {
            const u32 before = (n - 1) % STAGES;
            add_values(sums, fp, shared + (2 * before + 1) * TILE_BYTES);
            products_wait<1>();
            settle(scores);
            take_scores(scores, top, total, shrink, spans, tile * TILE, o);
            // Where the next tile is waited for the assembler begins another stretch of code: in one with the softmax, it
            // would wait for p v before all of that.
            if (tile + 1 < tiles) barrier_wait(full + 8 * ((n + 1) % STAGES), (n + 1) / STAGES & 1);
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
        for (u32 j = 0; j < TILE / 16; ++j) rounded(fp[j], scores, j);
    }
    if (first < tiles) {
        add_values(sums, fp, shared + (2 * ((tiles - first - 1) % STAGES) + 1) * TILE_BYTES);
        products_wait<0>();
        settle(sums);
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e)
        if (row0 + warp * 16 + lane / 4 + 8 * e < rows) finish_row(out, lse, places[e], sums, e, top[e], total[e], o);
}
