// A linear map of few rows whose weight is NF4, on Hopper: C = A Wᵀ + A2 B2ᵀ, m at most 64.
//
//   C (m, n) O     A (m, k) T     W (n, k) in NF4: packed (n k / 2) u8, a scale for each 1 << shift elements, 32 at least
//   A2 (m, k2), B2 (n, k2) T; k2 may be 0
//
// What decoding needs: nf4.cu and matmul_hopper.cu write W's values to memory and read them back, 4.5 bytes for each; here
// it is half a byte. The block of matmul_hopper.cu with its smallest tile, but that W's part of a stage is not brought by
// the copy engine: two groups of warps make it in shared memory, in turns, each thread 32 values of a row, from nibbles that
// it asked for some stages before. Values are those of nf4.cu, rounded to T, and the steps are those of matmul_hopper.cu, so
// the results are too, to the bit: which of the ways a product goes is a matter of speed.
//
// Accumulation in f32. Order: k in steps of 16, one wgmma after another onto one accumulator, then k2 likewise.
// Contract: C is written (=). Bound by memory, half a byte for each weight, if the block's lookups keep up: one of shared
// memory for each weight, 32 at a time on a multiprocessor.
//
// Macros: T (bf16 or f16), O (type of C), NESTED (whether scales are quantised themselves, as `scales` in dequantise.cu
// says; blocks of 1 << shift2 scales), STAGES. k is a multiple of 64; rows of A2 and B2 are multiples of 8 elements, all
// begin at multiples of 16 bytes.
#define ADD 0
#include "hopper.cuh"
#include "nf4.cuh"
#include "product.cuh"

const u32 BK = 64;         // depth of a stage
const u32 COLUMNS = 8;     // 64, in eights
const u32 MAKERS = 2;      // groups that make W's part
const u32 AHEAD = 4;       // stages of its own that a thread has asked for
const u32 STAGE = 2 * BOX; // A's part, W's or B2's

// A block takes 64 columns of C. Group 0 multiplies; the others fill every MAKERS-th stage each: one thread asks the copy
// engine for A's part (and B2's), all make W's.
// Shared memory: STAGES stages, the code's 16 numbers, NESTED the 256 of the scales', and 16 bytes a stage.
extern "C" __global__ void __launch_bounds__(GROUP * (MAKERS + 1), 2) matmul_nf4_hopper(
    O* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b2,
    const u8* packed, const u8* codes, const f32* code2, const f32* absmax, f32 offset, u32 shift, u32 shift2, u32 m, u32 n,
    u32 k, u32 k2) {
    extern __shared__ __align__(1024) u8 memory[];
    f32 *code = (f32*)(memory + STAGES * STAGE), *fine = code + 16;
    const u32 shared = shared_address(memory), full = shared_address(fine + (NESTED ? 256 : 0)), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(full + 8 * s, 4 + 1);  // each warp of makers, and who announces the bytes
            barrier_init(empty + 8 * s, 4);     // each warp that multiplies
        }
        fence_asynchronous();
    }
    if (threadIdx.x < 16) code[threadIdx.x] = CODE[threadIdx.x];
    if (NESTED)
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) fine[i] = code2[i];
    __syncthreads();
    const u32 first = k / BK, steps = first + (k2 + BK - 1) / BK, column = blockIdx.x * 64, group = threadIdx.x / GROUP;
    if (group > 0) {
        const u32 row = threadIdx.x % GROUP / 2, part = threadIdx.x % 2;
        const Scales scales = {codes, absmax, offset, shift, shift2};
        // Rows behind the last are made of the last: nobody looks at their columns.
        const u64 begin = (u64)min(column + row, n - 1) * k + 32 * part;
        Piece pieces[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            const u32 step = group - 1 + i * MAKERS;
            if (step < first) ask(pieces[i], packed, scales, begin + step * BK);
        }
        for (u32 turn = group - 1; turn < steps; turn += AHEAD * MAKERS)
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                const u32 step = turn + i * MAKERS, s = step % STAGES, to = shared + s * STAGE;
                if (step >= steps) continue;
                const bool main = step < first;
                barrier_wait(empty + 8 * s, step / STAGES & 1 ^ 1);  // at first at once
                if (threadIdx.x % GROUP == 0) {
                    const u32 depth = (main ? step : step - first) * BK;
                    barrier_expect(full + 8 * s, main ? BOX : STAGE);
                    load_box(to, main ? &a : &a2, full + 8 * s, depth, 0);
                    if (!main) load_box(to + BOX, &b2, full + 8 * s, depth, column);
                }
                if (main) {
                    make(to + BOX, pieces[i], scales, shared_address(code), fine, row, part);
                    fence_asynchronous();
                    const u32 next = step + AHEAD * MAKERS;
                    if (next < first) ask(pieces[i], packed, scales, begin + next * BK);
                }
                __syncwarp();
                if (threadIdx.x % 32 == 0) barrier_arrive(full + 8 * s);
            }
        return;
    }
    f32 sums[COLUMNS][4] = {};
    // There is a step, as in matmul_hopper.cu.
    u32 step = 0;
    do {
        const u32 s = step % STAGES, from = shared + s * STAGE;
        barrier_wait(full + 8 * s, step / STAGES & 1);
        settle(sums);
        products_begin();
#pragma unroll
        for (u32 t = 0; t < BK / 16; ++t) group_multiply<0, 0>(sums, factor<0>(from, t), factor<0>(from + BOX, t), T());
        products_commit();
        products_wait<1>();  // those of the step before
        if (step > 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * ((step - 1) % STAGES));
    } while (++step < steps);
    products_wait<0>();
    settle(sums);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; e += 2) {
            const u32 r = warp * 16 + lane / 4 + e / 2 * 8, q = column + 8 * j + lane % 4 * 2;
            if (r < m && q < n) finish2(c + (u64)r * n + q, sums[j][e], sums[j][e + 1], q, n, (const T*)0, 1.0f);
        }
}
