// NF4 to tiles of a matrix product: 32 values of a row at a time, from nibbles that were asked for before.
//
// Macros: T (bf16 or f16), NESTED (whether scales are quantised themselves, as in nf4.cu).
#pragma once
#include "mma.cuh"

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
