// Matrix product: C = alpha (A B + A2 B2) + bias, or C += that.
//
//   C (m, n) O     A (m, k) T     B (k, n) T     A2 (m, k2), B2 (k2, n) T     bias (n) T, may be null
//
// A is stored [m][k], or [k][m] with A_T = 1; B is stored [n][k] (a weight), or [k][n] with B_T = 1; A2 and B2 like
// them. ld* are the elements from one stored row to the next. So one kernel serves y = x W^T (0, 0), dx = dy W (0, 1) and
// dW += dy^T x (1, 1). A2 B2 is a low-rank update: its k2 are more steps of the same sum, while the tile of C is in
// registers, so with B2 = 0 the result is that without it, bit for bit.
//
// Accumulation in f32. Order: k in steps of 16, one mma.sync after another onto one accumulator, then k2 likewise. No
// split-k: tiles only decide how many such chains run at a time, so an element's bits depend neither on m, n nor the tile.
// Contract: C is written (=), or added to (+=) with ADD = 1.
// Bound by arithmetic, 2 m n k, if m and n are hundreds; by reading B if m is small (decoding): hence two tiles.
//
// Macros: T (bf16 or f16; without tensor cores f32 too), O (type of C), A_T, B_T, ADD; tile BM x BN x BK of WM x WN warps,
// STAGES tiles on their way. Without tensor cores TB and TB2, the types of B and B2, may differ from T (f32 activations,
// bf16 weights), and PM is the rows of a block.
#include "mma.cuh"
#include "product.cuh"

#ifndef TB
#define TB T
#endif
#ifndef TB2
#define TB2 T
#endif


// Rung 0: an element of C a thread, one fused multiply-add after another.
extern "C" __global__ void matmul_naive(
    O* c, const T* a, const TB* b, const T* a2, const TB2* b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2,
    u32 lda, u32 ldb, u32 lda2, u32 ldb2, u32 ldc) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u64 i = at / n, j = at % n;
    if (i >= m) return;
    f32 sum = 0.0f;
    for (u64 x = 0; x < k; ++x)
        sum = fmaf(widen(a[A_T ? x * lda + i : i * lda + x]), widen(b[B_T ? x * ldb + j : j * ldb + x]), sum);
    for (u64 x = 0; x < k2; ++x)
        sum = fmaf(widen(a2[A_T ? x * lda2 + i : i * lda2 + x]), widen(b2[B_T ? x * ldb2 + j : j * ldb2 + x]), sum);
    O* to = c + i * ldc + j;
    *to = narrow<O>(finished(to, sum, j, bias, alpha));
}

#ifdef PM
// Rung 1 without tensor cores: for f32, two types, and sizes that are no multiples of 8. A block has PM x 64 of C, a thread
// PM / 16 x 4; PLAIN_K steps of both factors at a time lie in shared memory, widened. The chains are those of the naive
// kernel, bit for bit: beyond the edges 0 is added to them.
const u32 PLAIN_N = 64, PLAIN_K = 16, PAD = 4;  // the padding keeps 16-byte alignment and parts the banks

// R x PLAIN_K elements from (row, x) of a matrix of `rows` rows and `depth` columns, to tile[column][row].
template <u32 R, bool TRANSPOSED, class From> __device__ __forceinline__ void fetch_plain(
    f32 (*tile)[R + PAD], const From* from, u32 ld, u32 row, u32 rows, u32 x, u32 depth) {
#pragma unroll
    for (u32 e = 0; e < R * PLAIN_K / 256; ++e) {
        const u32 i = threadIdx.x + 256 * e;  // neighbours read neighbours
        const u32 r = TRANSPOSED ? i % R : i / PLAIN_K, d = TRANSPOSED ? i / R : i % PLAIN_K;
        const bool valid = row + r < rows && x + d < depth;
        const u64 at = TRANSPOSED ? (u64)(x + d) * ld + row + r : (u64)(row + r) * ld + x + d;
        tile[d][r] = valid ? widen(from[at]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256) matmul_plain(
    O* c, const T* a, const TB* b, const T* a2, const TB2* b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2,
    u32 lda, u32 ldb, u32 lda2, u32 ldb2, u32 ldc) {
    __shared__ __align__(16) f32 ta[PLAIN_K][PM + PAD];
    __shared__ __align__(16) f32 tb[PLAIN_K][PLAIN_N + PAD];
    const u32 across = (n + PLAIN_N - 1) / PLAIN_N;
    const u32 row = blockIdx.x / across * PM, column = blockIdx.x % across * PLAIN_N;
    const u32 ty = threadIdx.x / 16 * (PM / 16), tx = threadIdx.x % 16 * 4;
    f32 sums[PM / 16][4] = {};
    auto take = [&]() {
        __syncthreads();  // the tiles are there
#pragma unroll
        for (u32 d = 0; d < PLAIN_K; ++d) {
            f32 u[PM / 16];
            for (u32 i = 0; i < PM / 16; ++i) u[i] = ta[d][ty + i];
            const float4 v = *(const float4*)&tb[d][tx];
#pragma unroll
            for (u32 i = 0; i < PM / 16; ++i) {
                sums[i][0] = fmaf(u[i], v.x, sums[i][0]);
                sums[i][1] = fmaf(u[i], v.y, sums[i][1]);
                sums[i][2] = fmaf(u[i], v.z, sums[i][2]);
                sums[i][3] = fmaf(u[i], v.w, sums[i][3]);
            }
        }
        __syncthreads();  // and nobody reads them any more
    };
    for (u32 x = 0; x < k; x += PLAIN_K) {
        fetch_plain<PM, A_T>(ta, a, lda, row, m, x, k);
        fetch_plain<PLAIN_N, B_T>(tb, b, ldb, column, n, x, k);
        take();
    }
    for (u32 x = 0; x < k2; x += PLAIN_K) {
        fetch_plain<PM, A_T>(ta, a2, lda2, row, m, x, k2);
        fetch_plain<PLAIN_N, B_T>(tb, b2, ldb2, column, n, x, k2);
        take();
    }
#pragma unroll
    for (u32 i = 0; i < PM / 16; ++i)
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 r = row + ty + i, q = column + tx + j;
            if (r >= m || q >= n) continue;
            O* to = c + (u64)r * ldc + q;
            *to = narrow<O>(finished(to, sums[i][j], q, bias, alpha));
        }
}
#endif

#ifdef BM
const u32 THREADS = WM * WN * 32;
const u32 TM = BM / WM, TN = BN / WN;  // a warp's part of the tile
const u32 BYTES_A = BM * BK * 2, BYTES_B = BN * BK * 2;

// A tile of ROWS x COLS elements from (row, column) of a matrix of rows x columns; zeros beyond its edges. Columns are
// multiples of 8, so a chunk is within or without.
template <int ROWS, int COLS> __device__ __forceinline__ void fetch(
    u32 tile, const T* from, u32 ld, u32 row, u32 rows, u32 column, u32 columns) {
    for (u32 i = threadIdx.x; i < ROWS * COLS / 8; i += THREADS) {
        const u32 r = i / (COLS / 8), c = i % (COLS / 8);
        const bool valid = row + r < rows && column + c * 8 < columns;
        copy16(tile + tile_at<COLS>(r, c), valid ? from + (u64)(row + r) * ld + column + c * 8 : from, valid);
    }
}

// Rung 2: a block a tile of C; tiles of A and B for the next STAGES - 1 steps are fetched while this one is multiplied.
extern "C" __global__ void __launch_bounds__(WM * WN * 32) matmul(
    O* c, const T* a, const T* b, const T* a2, const T* b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2,
    u32 lda, u32 ldb, u32 lda2, u32 ldb2, u32 ldc) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory);
    // Blocks that run at the same time should share tiles of A and B: bands of 8 tiles of rows, columns within.
    const u32 down = (m + BM - 1) / BM, across = (n + BN - 1) / BN, band = blockIdx.x / (8 * across);
    const u32 height = min(8, down - band * 8), within = blockIdx.x - band * 8 * across;
    const u32 row = (band * 8 + within % height) * BM, column = within / height * BN;

    const u32 first = (k + BK - 1) / BK, steps = first + (k2 + BK - 1) / BK;
    auto stage = [&](u32 step) {
        if (step < steps) {
            const bool main = step < first;
            const u32 depth = main ? k : k2, x = (main ? step : step - first) * BK;
            const u32 tile = shared + step % STAGES * (BYTES_A + BYTES_B);
            const T* pa = main ? a : a2;
            const T* pb = main ? b : b2;
            const u32 la = main ? lda : lda2, lb = main ? ldb : ldb2;
            if (A_T) fetch<BK, BM>(tile, pa, la, x, depth, row, m);
            else fetch<BM, BK>(tile, pa, la, row, m, x, depth);
            if (B_T) fetch<BK, BN>(tile + BYTES_A, pb, lb, x, depth, column, n);
            else fetch<BN, BK>(tile + BYTES_A, pb, lb, column, n, x, depth);
        }
        copy_commit();  // also when there is nothing: so that groups and steps count alike
    };

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 wm = warp / WN * TM, wn = warp % WN * TN;
    f32 sums[TM / 16][TN / 8][4] = {};
    for (u32 s = 0; s < STAGES - 1; ++s) stage(s);
    for (u32 step = 0; step < steps; ++step) {
        copy_wait<STAGES - 2>();
        __syncthreads();  // everybody's part has come, and nobody reads the tile that is fetched next
        stage(step + STAGES - 1);
        const u32 ta = shared + step % STAGES * (BYTES_A + BYTES_B), tb = ta + BYTES_A;
#pragma unroll
        for (u32 x = 0; x < BK; x += 16) {
            u32 fa[TM / 16][4], fb[TN / 16][4];
#pragma unroll
            for (u32 i = 0; i < TM / 16; ++i) fragment_a<A_T ? BM : BK, A_T>(fa[i], ta, wm + 16 * i, x);
#pragma unroll
            for (u32 j = 0; j < TN / 16; ++j) fragment_b<B_T ? BN : BK, B_T>(fb[j], tb, wn + 16 * j, x);
#pragma unroll
            for (u32 i = 0; i < TM / 16; ++i)
#pragma unroll
                for (u32 j = 0; j < TN / 8; ++j)
                    multiply(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1], T());
        }
    }

#pragma unroll
    for (u32 i = 0; i < TM / 16; ++i)
#pragma unroll
        for (u32 j = 0; j < TN / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; e += 2) {
                const u32 r = row + wm + 16 * i + lane / 4 + e / 2 * 8, q = column + wn + 8 * j + lane % 4 * 2;
                if (r >= m || q >= n) continue;
                finish2(c + (u64)r * ldc + q, sums[i][j][e], sums[i][j][e + 1], q, n, bias, alpha);
            }
}
#endif
