// Matrix product of at most 8 rows on Hopper: C = alpha (A Bᵀ + A2 B2ᵀ) + bias, or C += that. What decoding is made of.
//
//   C (m, n) O     A (m, k) T     B (n, k) T     A2 (m, k2), B2 (n, k2) T     bias (n) T, may be null
//
// The products of matmul_hopper.cu, one chain of wgmma for each element and the same bits, for which reading B is all
// there is to do. Two things stood in the way:
//
// - Every block wants the same few rows of A, of which a step of 64 is one line of 128 bytes. All blocks are at the same
//   step at about the same time, and the second-level cache gives a line to one after another: with one row that took longer
//   than B. So A comes CHUNK steps at a time: its lines lie in different parts of that cache.
// - A box of 64 rows is mostly zeros, which the copy engine writes as it writes what it reads. Here it has 8 rows; that
//   the tensor cores see 64 is a matter of their descriptor, in which the next eight rows are 0 bytes further on.
//
// Order: k in steps of 16, one wgmma after another onto one accumulator in f32, then k2 likewise.
// Contract: C is written (=), or added to (+=) with ADD = 1. Bound by memory, 2 n k bytes.
//
// Macros: T (bf16 or f16), O (type of C), ADD; BN columns of a block (32 or 64), STAGES tiles of B in the ring, at most CHUNK.
// Rows of A, B, A2 and B2 are multiples of 8 elements, all begin at multiples of 16 bytes, and k is not 0.
#include "hopper.cuh"
#include "product.cuh"

const u32 BK = 64;            // depth of a step
const u32 COLUMNS = BN / 8;
const u32 BYTES_B = BN * 128;
const u32 CHUNK = 16;         // steps
const u32 BYTES_A = 8 * 128;  // of a step
const u32 CHUNKS = 2;         // in a ring of their own

// A factor of eight rows, eight times: `factor<false>` of hopper.cuh but for the distance to the next eight.
__device__ __forceinline__ u64 factor_of_8(u32 box, u32 step) {
    return (u64)((box + step * 32) >> 4 & 0x3fff) | (u64)1 << 16 | 1ull << 62;
}

// A block takes BN columns. Group 0 multiplies; of group 1 a thread asks for copies.
// Shared memory: STAGES tiles of B, CHUNKS chunks of A, 16 bytes for each of both.
extern "C" __global__ void __launch_bounds__(2 * GROUP) matmul_rows_hopper(
    O* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a2,
    const __grid_constant__ TensorMap b2, const T* bias, f32 alpha, u32 m, u32 n, u32 k, u32 k2) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 tb = shared_address(memory), ta = tb + STAGES * BYTES_B, full = ta + CHUNKS * CHUNK * BYTES_A;
    const u32 empty = full + 8 * STAGES, full_a = empty + 8 * STAGES, empty_a = full_a + 8 * CHUNKS;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, 4);  // each warp that multiplies
        }
        for (u32 s = 0; s < CHUNKS; ++s) {
            barrier_init(full_a + 8 * s, 1);
            barrier_init(empty_a + 8 * s, 4);
        }
        fence_asynchronous();
    }
    __syncthreads();
    const u32 first = (k + BK - 1) / BK, steps = first + (k2 + BK - 1) / BK, column = blockIdx.x * BN;
    if (threadIdx.x >= GROUP) {
        if (threadIdx.x > GROUP) return;
        for (u32 step = 0; step < steps; ++step) {
            if (step % CHUNK == 0) {
                const u32 turn = step / CHUNK, s = turn % CHUNKS, count = min(CHUNK, steps - step);
                barrier_wait(empty_a + 8 * s, turn / CHUNKS & 1 ^ 1);  // at first at once
                barrier_expect(full_a + 8 * s, count * BYTES_A);
                for (u32 i = step; i < step + count; ++i)
                    load_box(ta + (s * CHUNK + i - step) * BYTES_A, i < first ? &a : &a2, full_a + 8 * s,
                             (i < first ? i : i - first) * BK, 0);
            }
            const u32 s = step % STAGES;
            const bool main = step < first;
            barrier_wait(empty + 8 * s, step / STAGES & 1 ^ 1);
            barrier_expect(full + 8 * s, BYTES_B);
            load_box(tb + s * BYTES_B, main ? &b : &b2, full + 8 * s, (main ? step : step - first) * BK, column);
        }
        return;
    }
    f32 sums[COLUMNS][4] = {};
    const bool tells = threadIdx.x % 32 == 0;
    // There is a step, as in matmul_hopper.cu.
    u32 step = 0;
    do {
        const u32 s = step % STAGES, turn = step / CHUNK, within = step % CHUNK;
        if (within == 0) barrier_wait(full_a + 8 * (turn % CHUNKS), turn / CHUNKS & 1);
        barrier_wait(full + 8 * s, step / STAGES & 1);
        settle(sums);
        products_begin();
        const u32 from = ta + (turn % CHUNKS * CHUNK + within) * BYTES_A;
#pragma unroll
        for (u32 t = 0; t < BK / 16; ++t)
            group_multiply<0, 0>(sums, factor_of_8(from, t), factor<0>(tb + s * BYTES_B, t), T());
        products_commit();
        products_wait<1>();  // those of the step before
        if (step > 0 && tells) {
            barrier_arrive(empty + 8 * ((step - 1) % STAGES));
            if (within == 0) barrier_arrive(empty_a + 8 * ((turn - 1) % CHUNKS));
        }
    } while (++step < steps);
    products_wait<0>();
    settle(sums);
    // All four warps have the same eight rows, twice.
    const u32 r = threadIdx.x / 4;
    if (threadIdx.x >= 32 || r >= m) return;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; ++j) {
        const u32 q = column + 8 * j + threadIdx.x % 4 * 2;
        if (q < n) finish2(c + (u64)r * n + q, sums[j][0], sums[j][1], q, n, bias, alpha);
    }
}
