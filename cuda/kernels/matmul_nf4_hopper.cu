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
#include "product.cuh"

const u32 BK = 64;         // depth of a stage
const u32 COLUMNS = 8;     // 64, in eights
const u32 MAKERS = 2;      // groups that make W's part
const u32 AHEAD = 4;       // stages of its own that a thread has asked for
const u32 STAGE = 2 * BOX; // A's part, W's or B2's

__constant__ f32 CODE[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Where scales are: absmax; or NESTED codes, in `fine` what they stand for, and absmax of those.
struct Scales {
    const u8* codes;
    const f32* absmax;
    f32 offset;
    u32 shift, shift2;
};

// 32 elements of W, as they were asked for.
struct Piece {
    uint4 words;
    f32 absmax;
    u32 code;
};

__device__ __forceinline__ void ask(Piece& piece, const u8* packed, const Scales& scales, u64 element) {
    piece.words = *(const uint4*)(packed + element / 2);
    const u64 block = element >> scales.shift;
    piece.absmax = scales.absmax[NESTED ? block >> scales.shift2 : block];
    if (NESTED) piece.code = scales.codes[block];
}

// Code of nibble p of a word, counted from the lowest; `code` is a multiple of 64.
__device__ __forceinline__ f32 looked_up(u32 code, u32 word, u32 p) {
    const u32 at = ((p == 0 ? word << 2 : word >> (4 * p - 2)) & 60) | code;
    f32 value;
    asm("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(at));
    return value;
}

// Two numbers in a word, rounded as `narrow` does, by one instruction.
__device__ __forceinline__ u32 pair(f32 low, f32 high, bf16) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ u32 pair(f32 low, f32 high, f16) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// The values of a piece to chunks 4 part .. 4 part + 3 of a row of a box.
__device__ __forceinline__ void make(
    u32 box, const Piece& piece, const Scales& scales, u32 code, const f32* fine, u32 row, u32 part) {
    const f32 scale = NESTED ? __fadd_rn(__fmul_rn(fine[piece.code], piece.absmax), scales.offset) : piece.absmax;
    const u32 words[4] = {piece.words.x, piece.words.y, piece.words.z, piece.words.w};
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        u32 pairs[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i)  // the upper nibble of a byte comes first
            pairs[i] = pair(looked_up(code, words[j], 2 * i + 1) * scale, looked_up(code, words[j], 2 * i) * scale, T());
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(box + tile_at<64>(row, 4 * part + j)), "r"(pairs[0]),
                     "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                     : "memory");
    }
}

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
