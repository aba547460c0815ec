// Attention, backward: scores and probabilities are made again from lse.
//
//   P = e^(s - lse),  dP = dO V^T,  delta_i = dO_i . O_i,  dS = P (dP - delta) cap'(s)
//   dV = P^T dO,  dQ = dS K,  dK = dS^T Q
//
//   q, out, dout, dq (queries, heads, D) T     k, v, dk, dv (keys, kv_heads, D) T     lse, delta (queries, heads) f32
//
// Two kernels: one owns a block of queries and sums dQ over the keys, one owns a tile of keys and sums dK and dV over the
// queries (of all heads that share it). Both make S and dP: 7 products in place of 5, but each sum is made by one
// block in one order. With atomics for dQ it would be 5, and the gradient another one in each run.
//
// Order: dQ in tiles of 64 keys; dK, dV in blocks of QB rows (query, head of the group); each sum in steps of 16
// onto one accumulator in f32. P and dS are rounded to T before they multiply.
// Contract: written (=). Bound by arithmetic: 14 D a pair of query and key.
//
// Macros: T (bf16 or f16; the naive kernels f32 too), D (64, 128 or 256, for the naive ones any), QB.
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 2, split in two.
#include "attention.cuh"
#include "mma.cuh"

// delta: a warp a query and head. Grid: rows over warps.
extern "C" __global__ void attention_delta(f32* delta, const T* dout, const T* out, u64 rows) {
    const u64 row = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    if (row >= rows) return;
    f32 sum = 0.0f;
    for (u32 e = lane; e < D; e += 32) sum += widen(dout[row * D + e]) * widen(out[row * D + e]);
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum;
}

// A score's P and dS / dP: what both naive kernels do with a pair, for a warp.
__device__ __forceinline__ void pair_gradient(
    f32& p, f32& ds, const T* query, const T* key, const T* value, const T* dquery, f32 lse, f32 delta, const Options& o) {
    f32 s = 0.0f, dp = 0.0f;
    for (u32 e = threadIdx.x % 32; e < D; e += 32) {
        s += widen(query[e]) * widen(key[e]);
        dp += widen(dquery[e]) * widen(value[e]);
    }
    s = capped(warp_sum(s), o);
    p = expf(s - lse);
    ds = p * (warp_sum(dp) - delta) * capped_slope(s, o);
}

// Rung 0 of dQ: a warp a query and head.
extern "C" __global__ void attention_dq_naive(
    T* dq, const T* dout, const T* q, const T* k, const T* v, const f32* lse, const f32* delta, const u32* cu_q,
    const u32* k_start, const u32* k_len, Options o) {
    const Segment s = segment(blockIdx.z, cu_q, k_start, k_len, 0, o);
    const u32 i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, h = blockIdx.y, lane = threadIdx.x % 32;
    if (i >= s.queries) return;
    const u64 row = (u64)(s.q_start + i) * o.heads + h;
    const Span span = visible(s, o, i);
    f32 sum[SHARE] = {};
    for (u32 j = span.first; j < span.last; ++j) {
        const u64 at = (s.key(j) * o.kv_heads + h / (o.heads / o.kv_heads)) * D;
        f32 p, ds;
        pair_gradient(p, ds, q + row * D, k + at, v + at, dout + row * D, lse[row], delta[row], o);
        for (u32 e = 0; e < SHARE; ++e)
            if (lane + 32 * e < D) sum[e] += ds * widen(k[at + lane + 32 * e]);
    }
    for (u32 e = 0; e < SHARE; ++e)
        if (lane + 32 * e < D) dq[row * D + lane + 32 * e] = narrow<T>(sum[e]);
}

// Rung 0 of dK and dV: a warp a key and its head.
extern "C" __global__ void attention_dkv_naive(
    T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const f32* lse, const f32* delta, const u32* cu_q,
    const u32* k_start, const u32* k_len, Options o) {
    const Segment s = segment(blockIdx.z, cu_q, k_start, k_len, 0, o);
    const u32 j = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, g = blockIdx.y, lane = threadIdx.x % 32;
    if (j >= s.keys) return;
    const u64 at = (s.key(j) * o.kv_heads + g) * D;
    const u32 group = o.heads / o.kv_heads;
    f32 sk[SHARE] = {}, sv[SHARE] = {};
    for (u32 i = 0; i < s.queries; ++i) {
        const Span span = visible(s, o, i);
        if (j < span.first || j >= span.last) continue;
        for (u32 h = g * group; h < (g + 1) * group; ++h) {
            const u64 row = (u64)(s.q_start + i) * o.heads + h;
            f32 p, ds;
            pair_gradient(p, ds, q + row * D, k + at, v + at, dout + row * D, lse[row], delta[row], o);
            for (u32 e = 0; e < SHARE; ++e) {
                if (lane + 32 * e >= D) continue;
                sk[e] += ds * widen(q[row * D + lane + 32 * e]);
                sv[e] += p * widen(dout[row * D + lane + 32 * e]);
            }
        }
    }
    for (u32 e = 0; e < SHARE; ++e) {
        if (lane + 32 * e >= D) continue;
        dk[at + lane + 32 * e] = narrow<T>(sk[e]);
        dv[at + lane + 32 * e] = narrow<T>(sv[e]);
    }
}

#ifdef QB
// Keys that come at a time for dQ, and four warps for each of so many parts of the columns of dK and dV: what shared memory
// and registers have room for with the largest heads.
const u32 KEYS = D <= 128 ? 64 : 16;
const u32 PARTS = D <= 128 ? 1 : D / 128;

// Rows (query, head of the group) of one key/value head, to shared memory; zeros beyond the last.
struct Rows {
    Segment s;
    u32 group, g, heads;
    __device__ __forceinline__ u32 count() const { return s.queries * group; }
    __device__ __forceinline__ u64 place(u32 r) const {
        return (u64)(s.q_start + r / group) * heads + g * group + r % group;
    }
    template <int COUNT, u32 THREADS> __device__ __forceinline__ void fetch(u32 to, const T* from, u32 row0) const {
        for (u32 i = threadIdx.x; i < COUNT * D / 8; i += THREADS) {
            const u32 r = i / (D / 8), c = i % (D / 8);
            const bool valid = row0 + r < count();
            copy16(to + tile_at<D>(r, c), valid ? from + place(row0 + r) * D + c * 8 : from, valid);
        }
    }
};

template <u32 COUNT, u32 THREADS>
__device__ __forceinline__ void fetch_keys(u32 to, const T* from, u32 tile, const Segment& s, u32 g, u32 kv_heads) {
    for (u32 i = threadIdx.x; i < COUNT * D / 8; i += THREADS) {
        const u32 r = i / (D / 8), c = i % (D / 8), j = tile * COUNT + r;
        const bool valid = j < s.keys;
        copy16(to + tile_at<D>(r, c), valid ? from + (s.key(j) * kv_heads + g) * D + c * 8 : from, valid);
    }
}

// Rung 1 of dQ, 64 rows a block. Shared memory: 2 tiles of rows, and of keys and values twice KEYS.
extern "C" __global__ void __launch_bounds__(128) attention_dq(
    T* dq, const T* dout, const T* q, const T* k, const T* v, const f32* lse, const f32* delta, const u32* cu_q,
    const u32* k_start, const u32* k_len, Options o) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 bytes = KEYS * D * 2, tq = shared_address(memory), to = tq + 64 * D * 2, tk = to + 64 * D * 2, tv = tk + 2 * bytes;
    const Piece piece = piece_of_rows(o);
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const Rows all = {s, o.heads / o.kv_heads, piece.head, o.heads};
    const u32 row0 = piece.number * 64, rows = all.count();
    if (row0 >= rows) return;
    const u32 first = visible(s, o, row0 / all.group).first / KEYS;
    const u32 tiles = (visible(s, o, (min(row0 + 64, rows) - 1) / all.group).last + KEYS - 1) / KEYS;
    auto stage = [&](u32 tile) {
        if (tile < tiles) {
            fetch_keys<KEYS, 128>(tk + tile % 2 * bytes, k, tile, s, all.g, o.kv_heads);
            fetch_keys<KEYS, 128>(tv + tile % 2 * bytes, v, tile, s, all.g, o.kv_heads);
        }
        copy_commit();
    };
    all.fetch<64, 128>(tq, q, row0);
    all.fetch<64, 128>(to, dout, row0);
    stage(first);

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Span spans[2];
    f32 log[2], level[2];
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        const bool valid = r < rows;
        spans[e] = valid ? visible(s, o, r / all.group) : Span{0, 0};
        log[e] = valid ? lse[all.place(r)] : 0.0f;
        level[e] = valid ? delta[all.place(r)] : 0.0f;
    }
    f32 sums[D / 8][4] = {};
    for (u32 tile = first; tile < tiles; ++tile) {
        copy_wait<0>();
        __syncthreads();
        stage(tile + 1);
        const u32 ka = tk + tile % 2 * bytes, va = tv + tile % 2 * bytes;
        // 16 keys at a time: both products, then dS, then its part of dQ.
#pragma unroll
        for (u32 j = 0; j < KEYS / 16; ++j) {
            f32 scores[2][4] = {}, dp[2][4] = {};
#pragma unroll
            for (u32 x = 0; x < D; x += 16) {
                u32 fa[4], fb[4];
                fragment_a<D, false>(fa, tq, warp * 16, x);
                fragment_b<D, false>(fb, ka, 16 * j, x);
                multiply(scores[0], fa, fb[0], fb[1], T());
                multiply(scores[1], fa, fb[2], fb[3], T());
                fragment_a<D, false>(fa, to, warp * 16, x);
                fragment_b<D, false>(fb, va, 16 * j, x);
                multiply(dp[0], fa, fb[0], fb[1], T());
                multiply(dp[1], fa, fb[2], fb[3], T());
            }
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    const u32 key = tile * KEYS + 16 * j + 8 * half + lane % 4 * 2 + e % 2;
                    const f32 score = capped(scores[half][e], o);
                    const bool seen = spans[e / 2].first <= key && key < spans[e / 2].last;
                    const f32 p = seen ? exp2f((score - log[e / 2]) * LOG2_E) : 0.0f;
                    scores[half][e] = p * (dp[half][e] - level[e / 2]) * capped_slope(score, o);
                }
            const u32 fs[4] = {
                pair<T>(scores[0][0], scores[0][1]), pair<T>(scores[0][2], scores[0][3]),
                pair<T>(scores[1][0], scores[1][1]), pair<T>(scores[1][2], scores[1][3])};
#pragma unroll
            for (u32 d = 0; d < D / 16; ++d) {
                u32 fk[4];
                fragment_b<D, true>(fk, ka, 16 * d, 16 * j);
                multiply(sums[2 * d], fs, fk[0], fk[1], T());
                multiply(sums[2 * d + 1], fs, fk[2], fk[3], T());
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 r = row0 + warp * 16 + lane / 4 + 8 * e;
        if (r >= rows) continue;
#pragma unroll
        for (u32 d = 0; d < D / 8; ++d)
            *(u32*)(dq + all.place(r) * D + 8 * d + lane % 4 * 2) = pair<T>(sums[d][2 * e], sums[d][2 * e + 1]);
    }
}

// Rung 1 of dK and dV: everything transposed, so that a warp owns 16 keys and no sum crosses warps. With several PARTS, each
// four warps make all scores, and a part of the columns of dK and dV.
// A block has a tile of keys. Shared memory: 2 tiles of keys, 4 of QB rows.
extern "C" __global__ void __launch_bounds__(128 * PARTS) attention_dkv(
    T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const f32* lse, const f32* delta, const u32* cu_q,
    const u32* k_start, const u32* k_len, Options o) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 bytes = TILE * D * 2, part = QB * D * 2;
    const u32 tk = shared_address(memory), tv = tk + bytes, tq = tv + bytes, to = tq + 2 * part;
    const Piece piece = piece_of_keys(o.kv_heads);
    const Segment s = segment(piece.segment, cu_q, k_start, k_len, 0, o);
    const Rows all = {s, o.heads / o.kv_heads, piece.head, o.heads};
    const u32 tile = piece.number, rows = all.count();
    if (tile * TILE >= s.keys) return;
    // Rows that see a key of this tile: a query's span moves to the right with the query.
    const u32 behind = s.keys - min(s.keys, s.queries);
    const u32 start = o.causal && tile * TILE > behind ? (tile * TILE - behind) * all.group : 0;
    const u32 end = o.window ? min((u64)rows, ((u64)tile * TILE + TILE + o.window) * all.group) : rows;
    const u32 first = start / QB, blocks = (end + QB - 1) / QB;
    auto stage = [&](u32 block) {
        if (block < blocks) {
            all.fetch<QB, 128 * PARTS>(tq + block % 2 * part, q, block * QB);
            all.fetch<QB, 128 * PARTS>(to + block % 2 * part, dout, block * QB);
        }
        copy_commit();
    };
    fetch_keys<TILE, 128 * PARTS>(tk, k, tile, s, all.g, o.kv_heads);
    fetch_keys<TILE, 128 * PARTS>(tv, v, tile, s, all.g, o.kv_heads);
    stage(first);

    const u32 lane = threadIdx.x % 32, warp = PARTS == 1 ? threadIdx.x / 32 : threadIdx.x / 32 % 4;
    const u32 column = PARTS == 1 ? 0 : threadIdx.x / 128 * (D / PARTS);
    f32 sk[D / PARTS / 8][4] = {}, sv[D / PARTS / 8][4] = {};
    for (u32 block = first; block < blocks; ++block) {
        copy_wait<0>();
        __syncthreads();
        stage(block + 1);
        const u32 qa = tq + block % 2 * part, oa = to + block % 2 * part;
        // 16 rows at a time, one after another: the sums take half of the registers.
#pragma unroll 1
        for (u32 j = 0; j < QB / 16; ++j) {
            f32 p[2][4] = {}, ds[2][4] = {};
#pragma unroll
            for (u32 x = 0; x < D; x += 16) {
                u32 fa[4], fb[4];
                fragment_a<D, false>(fa, tk, warp * 16, x);
                fragment_b<D, false>(fb, qa, 16 * j, x);
                multiply(p[0], fa, fb[0], fb[1], T());
                multiply(p[1], fa, fb[2], fb[3], T());
                fragment_a<D, false>(fa, tv, warp * 16, x);
                fragment_b<D, false>(fb, oa, 16 * j, x);
                multiply(ds[0], fa, fb[0], fb[1], T());
                multiply(ds[1], fa, fb[2], fb[3], T());
            }
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 odd = 0; odd < 2; ++odd) {
                    const u32 r = block * QB + 16 * j + 8 * half + lane % 4 * 2 + odd;
                    const bool valid = r < rows;
                    const Span span = valid ? visible(s, o, r / all.group) : Span{0, 0};
                    const f32 log = valid ? lse[all.place(r)] : 0.0f, level = valid ? delta[all.place(r)] : 0.0f;
#pragma unroll
                    for (u32 low = 0; low < 2; ++low) {
                        const u32 e = 2 * low + odd, key = tile * TILE + warp * 16 + lane / 4 + 8 * low;
                        const f32 score = capped(p[half][e], o);
                        const bool seen = span.first <= key && key < span.last;
                        p[half][e] = seen ? exp2f((score - log) * LOG2_E) : 0.0f;
                        ds[half][e] = p[half][e] * (ds[half][e] - level) * capped_slope(score, o);
                    }
                }
            const u32 fp[4] = {
                pair<T>(p[0][0], p[0][1]), pair<T>(p[0][2], p[0][3]), pair<T>(p[1][0], p[1][1]), pair<T>(p[1][2], p[1][3])};
            const u32 fs[4] = {
                pair<T>(ds[0][0], ds[0][1]), pair<T>(ds[0][2], ds[0][3]),
                pair<T>(ds[1][0], ds[1][1]), pair<T>(ds[1][2], ds[1][3])};
#pragma unroll
            for (u32 d = 0; d < D / PARTS / 16; ++d) {
                u32 fb[4];
                fragment_b<D, true>(fb, oa, column + 16 * d, 16 * j);
                multiply(sv[2 * d], fp, fb[0], fb[1], T());
                multiply(sv[2 * d + 1], fp, fb[2], fb[3], T());
                fragment_b<D, true>(fb, qa, column + 16 * d, 16 * j);
                multiply(sk[2 * d], fs, fb[0], fb[1], T());
                multiply(sk[2 * d + 1], fs, fb[2], fb[3], T());
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 j = tile * TILE + warp * 16 + lane / 4 + 8 * e;
        if (j >= s.keys) continue;
        const u64 at = (s.key(j) * o.kv_heads + all.g) * D + column + lane % 4 * 2;
#pragma unroll
        for (u32 d = 0; d < D / PARTS / 8; ++d) {
            *(u32*)(dk + at + 8 * d) = pair<T>(sk[d][2 * e], sk[d][2 * e + 1]);
            *(u32*)(dv + at + 8 * d) = pair<T>(sv[d][2 * e], sv[d][2 * e + 1]);
        }
    }
}
#endif
