// Attention of few rows over many keys, forward: decoding where a block for each segment and head leaves most of a card idle.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T, or in caches     lse (queries, heads) f32
//
// The attention of attention.cu, to the bit, in two kernels of many blocks: what a running softmax seems to do in one chain
// over the keys mostly is none.
// - A score depends on its own key. So attention_scores takes tiles of keys in any order, over any number of blocks.
// - The largest score before a tile is the same in whatever order it was found. With it, a tile's probabilities, their sum
//   and the factor by which what came before shrinks are the tile's own.
// - What is a chain, sums = sums * factor + p v and the same of the sum of p, is a chain for each element of o. So
//   attention_values gives each warp 8 columns of o, and lets it go over all keys.
// If instead each block made its own softmax of a part of the keys and the parts were joined, as flash decoding does, a sum
// over all keys would become a sum of sums: other bits than training has, or a second set of sums in training's registers.
//
// Memory between the two: of each segment and key/value head, for each tile its scores as lanes hold them, 8 blocks of keys
// x 32 lanes x 2 of 8 rows (512 f32; twice that if there are more rows), and the largest of each of 16 rows.
// Contract: written (=). Bound by reading k and v; the chain takes about as long as a block takes to read its columns of v.
//
// Macros: T (bf16 or f16), D (size of a head; 64, 128 or 256).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; Dao et al., Flash-Decoding (2023), which splits keys otherwise.
#include "running.cuh"

const u32 ROWS = 16;       // at most: queries times heads of a group
const u32 THREADS = 128;
const u32 TILE_SCORES = 8 * 32 * 2;  // of 8 rows
const u32 COLUMNS = 32;    // of o, a block of attention_values: 8 a warp
const u32 ROUND = 4;       // tiles at a time there: one a warp
const u32 STAGES = 3;      // in both rings

// A segment and head of keys: its rows, and the tiles that any of them sees.
struct Work {
    Segment s;
    u32 group, g, heads, rows, first, tiles;
    u64 number;  // of (segment, head)

    // Element 0 of row r: query r / group, head g * group + r % group.
    __device__ __forceinline__ u64 place(u32 r) const {
        return (u64)(s.q_start + r / group) * heads + g * group + r % group;
    }
};

// `room`: tiles that there is memory for.
__device__ __forceinline__ Work work_of(const Segment& s, u32 room, const Options& o) {
    Work w = {s, o.heads / o.kv_heads, blockIdx.x, o.heads, 0, 0, 0, (u64)blockIdx.z * o.kv_heads + blockIdx.x};
    w.rows = s.queries * w.group;
    if (w.rows == 0) return w;
    w.first = visible(s, o, 0).first / TILE;
    w.tiles = (visible(s, o, s.queries - 1).last + TILE - 1) / TILE - w.first;
    if (w.tiles > room) asm volatile("trap;");  // recorded over shorter caches
    return w;
}

// A block takes every gridDim.y-th tile, a warp 16 keys of each. Shared memory: STAGES tiles.
// Grid: (heads of keys, any, segments). `room`: tiles that memory is there for, of each segment and head.
extern "C" __global__ void __launch_bounds__(128) attention_scores(
    f32* scores, f32* tops, const T* q, const T* k, const T* v, const u32* cu_q, const u32* k_start, const u32* k_len,
    const u32* pages, const Cache* caches, u32 layer, u32 room, u32 halves, Options o) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ f32 largest[2][4][ROWS];  // of a tile, of each warp's keys
    const u32 ring = shared_address(memory), bytes = TILE * D * 2;
    const Work w = work_of(found(k, v, cu_q, k_start, k_len, pages, caches, layer, blockIdx.z, o), room, o);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto tile = [&](u32 step) { return blockIdx.y + step * gridDim.y; };
    auto stage = [&](u32 step) {
        if (tile(step) < w.tiles)
            for (u32 i = threadIdx.x; i < TILE * D / 8; i += THREADS) {
                const u32 r = i / (D / 8), c = i % (D / 8), j = (w.first + tile(step)) * TILE + r;
                const bool valid = j < w.s.keys;
                copy16(ring + step % STAGES * bytes + tile_at<D>(r, c),
                       valid ? k + (w.s.key(j) * o.kv_heads + w.g) * D + c * 8 : k, valid);
            }
        copy_commit();
    };
    auto put_largest = [&](u32 step) {
        if (threadIdx.x >= ROWS) return;
        const f32(&of)[4][ROWS] = largest[step % 2];
        const u32 r = threadIdx.x;
        tops[(w.number * room + tile(step)) * ROWS + r] = fmaxf(fmaxf(of[0][r], of[1][r]), fmaxf(of[2][r], of[3][r]));
    };
    stage(0);
    stage(1);
    // This lane's two rows, their queries as left factors, and the keys they see.
    u32 fq[D / 16][4];
    Span spans[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = lane / 4 + 8 * e;
        spans[e] = r < w.rows ? visible(w.s, o, r / w.group) : Span{0, 0};
#pragma unroll
        for (u32 x = 0; x < D / 16; ++x)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                fq[x][2 * half + e] = r < w.rows ? *(const u32*)(q + w.place(r) * D + 16 * x + lane % 4 * 2 + 8 * half) : 0;
    }
    u32 step = 0;
    for (; tile(step) < w.tiles; ++step) {
        copy_wait<1>();
        __syncthreads();  // the tile has come for all, and nobody reads the one before it any more
        stage(step + 2);
        if (step > 0) put_largest(step - 1);
        f32 own[2][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32};
#pragma unroll
        for (u32 x = 0; x < D; x += 16) {
            u32 fk[4];
            fragment_b<D, false>(fk, ring + step % STAGES * bytes, 16 * warp, x);
            multiply(own[0], fq[x / 16], fk[0], fk[1], T());
            multiply(own[1], fq[x / 16], fk[2], fk[3], T());
        }
        hide_scores(own, spans, (w.first + tile(step)) * TILE + 16 * warp, o);
        raise(top, own);
        if (lane % 4 == 0)
            for (u32 e = 0; e < 2; ++e) largest[step % 2][warp][lane / 4 + 8 * e] = top[e];
        f32* to = scores + (w.number * room + tile(step)) * halves * TILE_SCORES;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 b = 0; b < 2; ++b)
                if (half < halves)
                    *(float2*)(to + half * TILE_SCORES + ((2 * warp + b) * 32 + lane) * 2) =
                        make_float2(own[b][2 * half], own[b][2 * half + 1]);
    }
    copy_wait<0>();
    __syncthreads();
    if (step > 0) put_largest(step - 1);
}

// A block has COLUMNS of o. In each round a warp makes the probabilities of one tile, for all; then each adds all tiles of
// the round, in order, to its columns. Shared memory: STAGES rounds of v, 9 KiB.
// Grid: (heads of keys, D / COLUMNS, segments).
extern "C" __global__ void __launch_bounds__(128) attention_values(
    T* out, f32* lse, const f32* scores, const f32* tops, const T* k, const T* v, const u32* cu_q, const u32* k_start,
    const u32* k_len, const u32* pages, const Cache* caches, u32 layer, u32 room, u32 halves, Options o) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 part = TILE * COLUMNS * 2, bytes = ROUND * part, ring = shared_address(memory);
    uint4* probabilities = (uint4*)(memory + STAGES * bytes);  // (tile, 16 keys, lane): left factors
    f32(*shrinks)[ROWS] = (f32(*)[ROWS])(probabilities + ROUND * 4 * 32);
    f32(*added)[ROWS] = shrinks + ROUND;
    const Work w = work_of(found(k, v, cu_q, k_start, k_len, pages, caches, layer, blockIdx.z, o), room, o);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.y * COLUMNS;
    auto stage = [&](u32 round) {
        for (u32 i = threadIdx.x; i < ROUND * TILE * COLUMNS / 8; i += THREADS) {
            const u32 c = i % (COLUMNS / 8), r = i / (COLUMNS / 8) % TILE, u = i / (COLUMNS / 8 * TILE);
            if (ROUND * round + u >= w.tiles) break;
            const u32 j = (w.first + ROUND * round + u) * TILE + r;
            const bool valid = j < w.s.keys;
            copy16(ring + round % STAGES * bytes + u * part + tile_at<COLUMNS>(r, c),
                   valid ? v + ((w.s.key(j) + w.s.apart) * o.kv_heads + w.g) * D + column + c * 8 : v, valid);
        }
        copy_commit();
    };
    // Of the next round: this warp's scores, and the largest of all its tiles.
    f32 own[TILE / 8][4], ahead[ROUND][2];
    auto look = [&](u32 round) {
        const u32 mine = ROUND * round + warp;
        const f32* from = scores + (w.number * room + mine) * halves * TILE_SCORES;
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 b = 0; b < TILE / 8; ++b) {
                float2 two = make_float2(-INFINITY_F32, -INFINITY_F32);
                if (mine < w.tiles && half < halves) two = *(const float2*)(from + half * TILE_SCORES + (b * 32 + lane) * 2);
                own[b][2 * half] = two.x;
                own[b][2 * half + 1] = two.y;
            }
#pragma unroll
        for (u32 u = 0; u < ROUND; ++u)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const u32 tile = ROUND * round + u;
                ahead[u][e] = tile < w.tiles ? tops[(w.number * room + tile) * ROWS + lane / 4 + 8 * e] : -INFINITY_F32;
            }
    };
    stage(0);
    stage(1);
    look(0);
    f32 sums[1][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32}, total[2] = {};
    for (u32 round = 0; ROUND * round < w.tiles; ++round) {
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
        copy_wait<1>();
        __syncthreads();  // the round of v has come for all, and nobody reads what the last one left in shared memory
        stage(round + 2);
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j) {
            u32 fp[4];
            rounded(fp, own, j);
            probabilities[(warp * 4 + j) * 32 + lane] = make_uint4(fp[0], fp[1], fp[2], fp[3]);
        }
        if (lane % 4 == 0)
            for (u32 e = 0; e < 2; ++e) {
                shrinks[warp][lane / 4 + 8 * e] = shrink[e];
                added[warp][lane / 4 + 8 * e] = sum[e];
            }
        look(round + 1);
        __syncthreads();
        const u32 count = min(ROUND, w.tiles - ROUND * round), va = ring + round % STAGES * bytes;
        for (u32 u = 0; u < count; ++u) {
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const f32 factor = shrinks[u][lane / 4 + 8 * e];
                total[e] = fmaf(total[e], factor, added[u][lane / 4 + 8 * e]);
                sums[0][2 * e] *= factor;
                sums[0][2 * e + 1] *= factor;
            }
#pragma unroll
            for (u32 j = 0; j < TILE / 16; j += 2) {
                // 8 columns of 32 keys.
                u32 fv[4];
                load_matrices_transposed(fv, va + u * part + tile_at<COLUMNS>(16 * j + lane, warp));
#pragma unroll
                for (u32 b = 0; b < 2; ++b) {
                    const uint4 p = probabilities[(u * 4 + j + b) * 32 + lane];
                    const u32 fp[4] = {p.x, p.y, p.z, p.w};
                    multiply(sums[0], fp, fv[2 * b], fv[2 * b + 1], T());
                }
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = lane / 4 + 8 * e;
        if (r >= w.rows) continue;
        finish_sums(out + w.place(r) * D + column + 8 * warp, sums, e, total[e]);
        if (warp == 0 && blockIdx.y == 0) finish_lse(lse, w.place(r), top[e], total[e], o);
    }
}
