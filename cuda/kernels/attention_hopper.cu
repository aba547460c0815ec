// Attention over a packed stream of sequences, forward, on Hopper: no score matrix in memory.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T     lse (queries, heads) f32
//
// The attention of attention.cu, in training, prefill and decoding, with tiles of 64 keys that the copy engine brings and
// products of four warps. A warp of its own fills a ring of tiles of k and v. The last tile of a segment it brings by
// ordinary loads, if the segment ends within: a box would bring the next segment's keys, which may be anything, and 0
// times anything need not be 0. q and p are left factors and stay in registers.
//
// Order: that of attention.cu: tiles of 64 keys counted from the segment's first, with a running maximum; within a tile
// scores are sums over D in steps of 16 (wgmma), the sum of p that of a lane's 16 keys and then of 4 lanes, p v a sum over
// the tile in steps of 16. A query's bits depend on its own keys alone: the same in training and decoding.
// p is rounded to T before it multiplies v; its sum is of the unrounded.
// Contract: written (=). Bound by arithmetic, 4 D a pair of query and key, in training; by reading k and v in decoding.
//
// Macros: T (bf16 or f16), D (size of a head: 64 or 128), GROUPS (of four warps that multiply, each 64 rows).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; Shah et al., FlashAttention-3, arXiv:2407.08608, for the
// producer, without its overlap of softmax and products within a group: two groups overlap by themselves. Not yet run on
// a card.
#include "hopper.cuh"
#include "running.cuh"

const u32 STAGES = 2;
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

// Grid: (blocks of rows, key/value heads, segments). A row is a query and a head of the group that shares keys.
// Shared memory: STAGES tiles of k and of v, and 16 bytes for each stage.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_hopper(
    T* out, f32* lse, const T* q, const T* k, const T* v, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const u32* cu_q, const u32* k_start, const u32* k_len, const u32* pages,
    Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory), full = shared + 2 * STAGES * TILE_BYTES, empty = full + 8 * STAGES;
    const Segment s = segment(blockIdx.z, cu_q, k_start, k_len, pages, o);
    const u32 share = o.heads / o.kv_heads, g = blockIdx.y, rows = s.queries * share;
    const u32 row0 = blockIdx.x * 64 * GROUPS;
    if (row0 >= rows) return;
    const u32 last_row = min(row0 + 64 * GROUPS, rows) - 1;
    const u32 first = visible(s, o, row0 / share).first / TILE, last = visible(s, o, last_row / share).last;
    const u32 tiles = (last + TILE - 1) / TILE;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 4 * GROUPS);  // each warp that multiplies
        }
        fence_asynchronous();
    }
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        if (GROUPS == 2) release_registers<56>();
        const u32 lane = threadIdx.x - GROUP * GROUPS;
        if (lane < 32)
            for (u32 tile = first; tile < tiles; ++tile) {
                const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES, tv = tk + TILE_BYTES;
                barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
                if ((tile + 1) * TILE <= s.keys) {
                    if (lane == 0) {
                        const u32 row = s.key(tile * TILE);
                        barrier_expect(full + 8 * i, 2 * TILE_BYTES);
#pragma unroll
                        for (u32 b = 0; b < BOXES; ++b) {
                            load_box(tk + b * BOX, &map_k, full + 8 * i, 64 * b, g, row);
                            load_box(tv + b * BOX, &map_v, full + 8 * i, 64 * b, g, row);
                        }
                    }
                } else {
                    load_rest(tk, k, s, tile, g, o);
                    load_rest(tv, v, s, tile, g, o);
                    fence_asynchronous();
                    __syncwarp();
                    if (lane == 0) barrier_arrive(full + 8 * i);
                }
            }
        return;
    }

    if (GROUPS == 2) claim_registers<224>();
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
    for (u32 tile = first; tile < tiles; ++tile) {
        const u32 n = tile - first, i = n % STAGES, tk = shared + 2 * i * TILE_BYTES, tv = tk + TILE_BYTES;
        barrier_wait(full + 8 * i, n / STAGES & 1);
        f32 scores[TILE / 8][4] = {};
        settle(scores);
        settle(fq);
        products_begin();
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x) group_multiply<false>(scores, fq[x], factor<false>(tk + x / 4 * BOX, x % 4), T());
        products_commit();
        products_wait<0>();
        settle(scores);
        f32 shrink[2];
        take_scores(scores, top, total, shrink, spans, tile * TILE, o);
        u32 fp[TILE / 16][4];
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j) rounded(fp[j], scores, j);
#pragma unroll
        for (u32 d = 0; d < D / 8; ++d)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) sums[d][e] *= shrink[e / 2];
        settle(sums);
        settle(fp);
        products_begin();
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j) group_multiply<true>(sums, fp[j], factor<true>(tv, j), T());
        products_commit();
        products_wait<0>();
        settle(sums);
        if (lane == 0) barrier_arrive(empty + 8 * i);
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e)
        if (row0 + warp * 16 + lane / 4 + 8 * e < rows) finish_row(out, lse, places[e], sums, e, top[e], total[e]);
}
