// A linear map of few rows whose weight is NF4, on cards without wgmma: C = A Wᵀ + A2 B2ᵀ, m at most BM.
//
//   C (m, n) O     A (m, k) T     W (n, k) in NF4: packed (n k / 2) u8, a scale for each 1 << shift elements, 32 at least
//   A2 (m, k2), B2 (n, k2) T; k2 may be 0
//
// What decoding needs, as matmul_nf4_hopper.cu says. The block of matmul.cu with few rows, but that W's tile is made in shared
// memory, each thread 32 values of a row of it, from nibbles that it asked for AHEAD steps before: while one tile is multiplied
// the next is made beside it. Values are those of nf4.cu, rounded to T, and the steps are those of matmul.cu, so the results
// are too, to the bit: which of the ways a product goes is a matter of speed.
//
// Accumulation in f32. Order: k in steps of 16, one mma.sync after another onto one accumulator, then k2 likewise.
// Contract: C is written (=). Bound by memory, half a byte for each weight, if there are blocks enough to ask for it.
//
// Macros: T (bf16 or f16), O (type of C), NESTED (whether scales are quantised themselves; blocks of 1 << shift2 scales), BM
// (16 or 64 rows). k is a multiple of 64; rows of A2 and B2 are multiples of 8 elements, all begin at multiples of 16 bytes.
#define ADD 0
#include "nf4.cuh"
#include "product.cuh"

const u32 BN = 64, BK = 64;     // columns and depth of a tile
const u32 WARPS = 4;            // each 16 columns
const u32 STAGES = 4;           // tiles of A on their way
const u32 AHEAD = 4;            // steps for which a thread has asked
const u32 BYTES_A = BM * BK * 2, BYTES_B = BN * BK * 2;

// A tile of ROWS rows from (row, column) of a matrix of rows x columns; zeros beyond its edges.
template <u32 ROWS> __device__ __forceinline__ void fetch(u32 tile, const T* from, u32 row, u32 rows, u32 column, u32 columns) {
#pragma unroll
    for (u32 i = threadIdx.x; i < ROWS * BK / 8; i += 32 * WARPS) {
        const u32 r = i / (BK / 8), c = i % (BK / 8);
        const bool valid = row + r < rows && column + c * 8 < columns;
        copy16(tile + tile_at<BK>(r, c), valid ? from + (u64)(row + r) * columns + column + c * 8 : from, valid);
    }
}

// Shared memory: STAGES tiles of A, two of W, the code's 16 numbers, NESTED the 256 of the scales'.
extern "C" __global__ void __launch_bounds__(32 * WARPS) matmul_nf4(
    O* c, const T* a, const T* a2, const T* b2, const u8* packed, const u8* codes, const f32* code2, const f32* absmax, f32 offset,
    u32 shift, u32 shift2, u32 m, u32 n, u32 k, u32 k2) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory), tiles_b = shared + STAGES * BYTES_A;
    f32 *code = (f32*)(memory + STAGES * BYTES_A + 2 * BYTES_B), *fine = code + 16;
    if (threadIdx.x < 16) code[threadIdx.x] = CODE[threadIdx.x];
    if (NESTED)
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) fine[i] = code2[i];
    const u32 first = k / BK, steps = first + (k2 + BK - 1) / BK, column = blockIdx.x * BN;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = threadIdx.x / 2, part = threadIdx.x % 2;
    const Scales scales = {codes, absmax, offset, shift, shift2};
    // Rows behind the last are made of the last: nobody looks at their columns.
    const u64 begin = (u64)min(column + row, n - 1) * k + 32 * part;
    Piece pieces[AHEAD];
#pragma unroll
    for (u32 i = 0; i < AHEAD; ++i)
        if (i < first) ask(pieces[i], packed, scales, begin + i * BK);
    // A's tile of a step, and B2's in W's place.
    auto stage = [&](u32 step) {
        if (step < steps) {
            const bool main = step < first;
            const u32 to = shared + step % STAGES * BYTES_A;
            if (main) fetch<BM>(to, a, 0, m, step * BK, k);
            else fetch<BM>(to, a2, 0, m, (step - first) * BK, k2);
        }
        copy_commit();  // also when there is nothing: so that groups and steps count alike
    };
    auto make_tile = [&](u32 step, Piece& piece) {
        const u32 to = tiles_b + step % 2 * BYTES_B;
        if (step < first) {
            make(to, piece, scales, shared_address(code), fine, row, part);
            if (step + AHEAD < first) ask(piece, packed, scales, begin + (step + AHEAD) * BK);
        } else if (step < steps) {
            // The update's factor is as wide as a tile or two: it is not worth a ring.
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 r = column + row, at = (step - first) * BK + 32 * part + 8 * j;
                uint4 chunk = make_uint4(0, 0, 0, 0);
                if (r < n && at < k2) chunk = *(const uint4*)(b2 + (u64)r * k2 + at);
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + tile_at<BK>(row, 4 * part + j)),
                             "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w)
                             : "memory");
            }
        }
    };
    f32 sums[BM / 16][2][4] = {};
    for (u32 s = 0; s < STAGES - 1; ++s) stage(s);
    __syncthreads();  // the codes are there
    make_tile(0, pieces[0]);
    for (u32 turn = 0; turn < steps; turn += AHEAD)
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            const u32 step = turn + i;
            if (step >= steps) break;
            copy_wait<STAGES - 2>();
            __syncthreads();  // everybody's parts have come, and nobody reads the tiles that are written next
            stage(step + STAGES - 1);
            make_tile(step + 1, pieces[(i + 1) % AHEAD]);
            const u32 ta = shared + step % STAGES * BYTES_A, tb = tiles_b + step % 2 * BYTES_B;
#pragma unroll
            for (u32 x = 0; x < BK; x += 16) {
                u32 fa[BM / 16][4], fb[4];
#pragma unroll
                for (u32 t = 0; t < BM / 16; ++t) fragment_a<BK, false>(fa[t], ta, 16 * t, x);
                fragment_b<BK, false>(fb, tb, 16 * warp, x);
#pragma unroll
                for (u32 t = 0; t < BM / 16; ++t)
#pragma unroll
                    for (u32 j = 0; j < 2; ++j) multiply(sums[t][j], fa[t], fb[2 * j], fb[2 * j + 1], T());
            }
        }
#pragma unroll
    for (u32 t = 0; t < BM / 16; ++t)
#pragma unroll
        for (u32 j = 0; j < 2; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; e += 2) {
                const u32 r = 16 * t + lane / 4 + e / 2 * 8, q = column + 16 * warp + 8 * j + lane % 4 * 2;
                if (r < m && q < n) finish2(c + (u64)r * n + q, sums[t][j][e], sums[t][j][e + 1], q, n, (const T*)0, 1.0f);
            }
}
