// Attention, backward, on Hopper: dQ from a stored dS.
//
//   dQ = scale dS K
//
//   dq (queries, heads, D) T     k (keys, kv_heads, D) T     dS / scale: tiles as struct Stored says
//
// attention_backward_hopper.cu, or of heads of 256 attention_backward_wide_hopper.cu, makes dS for dK; where there is memory for
// it, it is stored, and dQ is one product and not the three that it takes to make dS again: 5 in all, which is what counts, and
// not 7 (of heads of 256 6, not 8). A group multiplies 64 queries of a head; the tile of keys is for all groups of the block, so
// many groups read it less often. A warp of its own fills a ring of tiles.
//
// Order: in tiles of 64 keys counted from the segment's first, in steps of 16 (wgmma) onto one accumulator in f32: the bits are
// those of the kernel that makes dS again.
// Contract: written (=). Bound by memory: 2 bytes a pair of query and key are read, for 2 D operations.
//
// Macros: T (bf16 or f16), D (128 or 256), CAP (whether there is a soft-cap), GROUPS (of four warps that multiply).
#include "backward_hopper.cuh"

const u32 STAGES = 4;
const u32 STAGE_BYTES = TILE_BYTES + GROUPS * BOX;

// 64 GROUPS queries of a head a block. Grid: (heads, pieces of queries, segments).
// Shared memory: STAGES tiles of k with those of dS behind, and 8 (2 STAGES + 1) bytes.
extern "C" __global__ void __launch_bounds__(GROUP * (GROUPS + 1), 1) attention_dq_scores_hopper(
    T* dq, const __grid_constant__ TensorMap map_scores, const __grid_constant__ TensorMap map_k, const u32* cu_q,
    const u32* k_start, const u32* k_len, Stored stored, Options o) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 ring = shared_address(memory), full = ring + STAGES * STAGE_BYTES, empty = full + 8 * STAGES;
    const u32 landed = empty + 8 * STAGES;
    const Segment s = segment(blockIdx.z, cu_q, k_start, k_len, 0, o);
    const u32 share = o.heads / o.kv_heads, h = stored.first * share + blockIdx.x;
    const u32 block0 = (gridDim.y - 1 - blockIdx.y) * GROUPS;  // the last queries see the most keys
    if (block0 * TILE >= s.queries) return;
    // Tiles that each group takes, and all of them: a block of queries sees keys no earlier than the one before.
    Span of[GROUPS];
    u32 end = 0;
#pragma unroll
    for (u32 i = 0; i < GROUPS; ++i) {
        of[i] = seen_tiles(s, o, block0 + i);
        end = max(end, of[i].last);
    }
    const u32 first = of[0].first;

    begin_ring<STAGES>(full, 1, 4 * GROUPS, 1);
    __syncthreads();
    if (threadIdx.x >= GROUP * GROUPS) {
        const u32 lane = threadIdx.x - GROUP * GROUPS;
        if (lane >= 32) return;
        u32 at[GROUPS];  // rows of the map
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i)
            at[i] = of[i].last > 0 ? (u32)stored_tiles(stored, s, blockIdx.z, block0 + i, h, o) - of[i].first : 0;
        for (u32 tile = first; tile < end; ++tile) {
            const u32 n = tile - first, i = n % STAGES, tk = ring + i * STAGE_BYTES;
            const bool whole = (tile + 1) * TILE <= s.keys;
            barrier_wait(empty + 8 * i, n / STAGES & 1 ^ 1);  // at first at once
            if (lane == 0) {
                const u32 to = whole ? full + 8 * i : landed;
                u32 bytes = TILE_BYTES;
#pragma unroll
                for (u32 j = 0; j < GROUPS; ++j) bytes += of[j].has(tile) ? BOX : 0;
                barrier_expect(to, bytes);
                load_tile(tk, &map_k, to, h / share, s.key(tile * TILE));
#pragma unroll
                for (u32 j = 0; j < GROUPS; ++j)
                    if (of[j].has(tile)) load_box(tk + TILE_BYTES + j * BOX, &map_scores, to, 0, (at[j] + tile) * TILE);
            }
            if (whole) continue;
            // dS is 0 there, and 0 times anything need not be 0.
            barrier_wait(landed, 0);
            clear_rows<BOXES>(tk, s.keys - tile * TILE);
            fence_asynchronous();
            __syncwarp();
            if (lane == 0) barrier_arrive(full + 8 * i);
        }
        return;
    }

    const u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, group = threadIdx.x / GROUP, block = block0 + group;
    const Span own = seen_tiles(s, o, block);
    f32 sums[D / 8][4] = {};
    // The stage of tile n is free once all groups say so, those too that have no use for it.
    auto wait = [&](u32 n) { barrier_wait(full + 8 * (n % STAGES), n / STAGES & 1); };
    auto leave = [&](u32 n) {
        if (lane == 0) barrier_arrive(empty + 8 * (n % STAGES));
    };
    u32 n = 0;
    for (; own.last > 0 && first + n < own.first; ++n) {
        wait(n);
        leave(n);
    }
    const u32 begin = n;
    for (; first + n < own.last; ++n) {
        const u32 tk = ring + n % STAGES * STAGE_BYTES, scores = tk + TILE_BYTES + group * BOX;
        wait(n);
        settle(sums);
        products_begin();
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j)
            group_multiply<true, true>(sums, factor<true>(scores, j), factor<true>(tk, j), T());
        products_commit();
        products_wait<1>();  // of the tile before
        if (n > begin) leave(n - 1);
    }
    products_wait<0>();
    settle(sums);
    if (n > begin) leave(n - 1);
    for (; first + n < end; ++n) {
        wait(n);
        leave(n);
    }
    const f32 by = factors(o).end;
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 query = block * TILE + stored_query(warp * 16 + lane / 4 + 8 * e);
        if (query < s.queries) store_sums(dq + ((u64)(s.q_start + query) * o.heads + h) * D, sums, e, by);
    }
}
