// Attention over a packed stream of sequences, forward: no score matrix in memory.
//
//   s_j = cap(scale q_i . k_j),  p = softmax over the keys j that i sees,  o_i = sum_j p_j v_j,  lse_i = ln sum_j e^s_j
//
//   q, out (queries, heads, D) T     k, v (rows, kv_heads, D) T     lse (queries, heads) f32
//
// With `caches`, one a segment, k and v are in them, of layer `layer`.
//
// One kernel is training, prefill and decoding: a block takes 64 rows (query, head of the group) of one segment and one
// key/value head, so in decoding the heads that share keys read them once.
//
// Order: tiles of 64 keys counted from the segment's first, with a running maximum; within a tile scores are sums over D in
// steps of 16 (mma.sync), the sum of p that of a lane's 16 keys and then of 4 lanes, p v a sum over the tile in steps of
// 16. A key that is not seen has p = 0 and adds 0; a tile with no key seen changes nothing. So a query's bits depend on
// its own keys alone: the same in training and decoding.
// p is rounded to T before it multiplies v; its sum is of the unrounded.
// Contract: written (=). Bound by arithmetic, 4 D a pair of query and key, in training; by reading k and v in decoding.
//
// Macros: T (bf16 or f16; the naive kernel f32 too), D (size of a head; 64, 128 or 256, for the naive one any).
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; soft-cap: Gemma 2, arXiv:2408.00118.
#include "attention.cuh"
#ifdef TENSOR_CORES
#include "running.cuh"
#endif

// Rung 0: a warp a query and head; a lane has every 32nd element, each score is a sum over the warp. Also what does f32.
extern "C" __global__ void attention_forward_naive(
    T* out, f32* lse, const T* q, const T* k, const T* v, const u32* cu_q, const u32* k_start, const u32* k_len,
    const u32* pages, const Cache* caches, u32 layer, Options o) {
    const Segment s = found(k, v, cu_q, k_start, k_len, pages, caches, layer, blockIdx.z, o);
    const u32 i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, h = blockIdx.y, lane = threadIdx.x % 32;
    if (i >= s.queries) return;
    const u64 row = (u64)(s.q_start + i) * o.heads + h;
    const u32 g = h / (o.heads / o.kv_heads);
    const Span span = visible(s, o, i);
    f32 query[SHARE], sum[SHARE] = {}, top = -INFINITY_F32, total = 0.0f;
    for (u32 e = 0; e < SHARE; ++e) query[e] = lane + 32 * e < D ? widen(q[row * D + lane + 32 * e]) : 0.0f;
    for (u32 j = span.first; j < span.last; ++j) {
        const u64 at = (s.key(j) * o.kv_heads + g) * D + lane, to_value = (u64)s.apart * o.kv_heads * D;
        f32 score = 0.0f;
        for (u32 e = 0; e < SHARE; ++e)
            if (lane + 32 * e < D) score += query[e] * widen(k[at + 32 * e]);
        score = capped(warp_sum(score), o);
        const f32 next = fmaxf(top, score), shrink = expf(top - next), p = expf(score - next);
        total = total * shrink + p;
        for (u32 e = 0; e < SHARE; ++e)
            if (lane + 32 * e < D) sum[e] = sum[e] * shrink + p * widen(v[at + to_value + 32 * e]);
        top = next;
    }
    for (u32 e = 0; e < SHARE; ++e)
        if (lane + 32 * e < D) out[row * D + lane + 32 * e] = narrow<T>(total > 0.0f ? sum[e] / total : 0.0f);
    if (lane == 0) lse[row] = total > 0.0f ? top + logf(total) : -INFINITY_F32;
}

#ifdef TENSOR_CORES
const u32 ROWS = 64;       // of a block; a warp has 16
const u32 THREADS = 128;
const u32 TILE_BYTES = TILE * D * 2;
// Tiles of k, and of v, in shared memory: of large heads there is room for one, on cards with the least of it.
const u32 BUFFERS = D <= 128 ? 2 : 1;

// Rung 1: tensor cores; the next tile of k and v comes while this one is multiplied. With one buffer of each, the next of k
// comes while p v is added up, the next of v while scores are made.
// Shared memory: a tile of q, BUFFERS of k and of v.
extern "C" __global__ void __launch_bounds__(128) attention_forward(
    T* out, f32* lse, const T* q, const T* k, const T* v, const u32* cu_q, const u32* k_start, const u32* k_len,
    const u32* pages, const Cache* caches, u32 layer, Options o) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 tq = shared_address(memory), tk = tq + TILE_BYTES, tv = tk + BUFFERS * TILE_BYTES;
    const Piece piece = piece_of_rows(o);
    const Segment s = found(k, v, cu_q, k_start, k_len, pages, caches, layer, piece.segment, o);
    const u32 group = o.heads / o.kv_heads, g = piece.head, rows = s.queries * group, row0 = piece.number * ROWS;
    if (row0 >= rows) return;
    // Element 0 of row r: query r / group, head g * group + r % group.
    auto place = [&](u32 r) { return (u64)(s.q_start + r / group) * o.heads + g * group + r % group; };

    const u32 last_row = min(row0 + ROWS, rows) - 1;
    const u32 first = visible(s, o, row0 / group).first / TILE, last = visible(s, o, last_row / group).last;
    const u32 tiles = (last + TILE - 1) / TILE;
    auto fetch = [&](u32 tile, u32 to, const T* from, u32 behind) {
        for (u32 i = threadIdx.x; i < TILE * D / 8; i += THREADS) {
            const u32 r = i / (D / 8), c = i % (D / 8), j = tile * TILE + r;
            const bool valid = j < s.keys;
            copy16(to + tile_at<D>(r, c), valid ? from + ((s.key(j) + behind) * o.kv_heads + g) * D + c * 8 : from, valid);
        }
    };
    auto stage_keys = [&](u32 tile) {
        if (tile < tiles) fetch(tile, tk + tile % BUFFERS * TILE_BYTES, k, 0);
    };
    auto stage_values = [&](u32 tile) {
        if (tile < tiles) fetch(tile, tv + tile % BUFFERS * TILE_BYTES, v, s.apart);
    };
    for (u32 i = threadIdx.x; i < ROWS * D / 8; i += THREADS) {
        const u32 r = i / (D / 8), c = i % (D / 8);
        const bool valid = row0 + r < rows;
        copy16(tq + tile_at<D>(r, c), valid ? q + place(row0 + r) * D + c * 8 : q, valid);
    }
    stage_keys(first);
    if (BUFFERS == 1) copy_commit();
    stage_values(first);
    copy_commit();

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // This lane's two rows, and the keys they see.
    Span spans[2];
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        spans[e] = r < rows ? visible(s, o, r / group) : Span{0, 0};
    }
    f32 sums[D / 8][4] = {}, top[2] = {-INFINITY_F32, -INFINITY_F32}, total[2] = {};
    for (u32 tile = first; tile < tiles; ++tile) {
        copy_wait<BUFFERS == 1 ? 1 : 0>();
        __syncthreads();  // the tile has come for all, and nobody reads the other one any more
        if (BUFFERS == 2) {
            stage_keys(tile + 1);
            stage_values(tile + 1);
            copy_commit();
        }
        const u32 ka = tk + tile % BUFFERS * TILE_BYTES, va = tv + tile % BUFFERS * TILE_BYTES;
        f32 scores[TILE / 8][4] = {};
#pragma unroll
        for (u32 x = 0; x < D; x += 16) {
            u32 fq[4];
            fragment_a<D, false>(fq, tq, warp * 16, x);
#pragma unroll
            for (u32 j = 0; j < TILE / 16; ++j) {
                u32 fk[4];
                fragment_b<D, false>(fk, ka, 16 * j, x);
                multiply(scores[2 * j], fq, fk[0], fk[1], T());
                multiply(scores[2 * j + 1], fq, fk[2], fk[3], T());
            }
        }
        if (BUFFERS == 1) {
            __syncthreads();
            stage_keys(tile + 1);
            copy_commit();
        }
        f32 shrink[2];
        take_scores(scores, top, total, shrink, spans, tile * TILE, o);
#pragma unroll
        for (u32 d = 0; d < D / 8; ++d)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) sums[d][e] *= shrink[e / 2];
        if (BUFFERS == 1) {
            copy_wait<1>();
            __syncthreads();
        }
#pragma unroll
        for (u32 j = 0; j < TILE / 16; ++j) {
            u32 fp[4];
            rounded(fp, scores, j);
#pragma unroll
            for (u32 d = 0; d < D / 16; ++d) {
                u32 fv[4];
                fragment_b<D, true>(fv, va, 16 * d, 16 * j);
                multiply(sums[2 * d], fp, fv[0], fv[1], T());
                multiply(sums[2 * d + 1], fp, fv[2], fv[3], T());
            }
        }
        if (BUFFERS == 1) {
            __syncthreads();
            stage_values(tile + 1);
            copy_commit();
        }
    }
    copy_wait<0>();
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        if (r >= rows) continue;
        finish_row(out, lse, place(r), sums, e, top[e], total[e], o);
    }
}
#endif
