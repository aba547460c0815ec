// Blocks of GGUF files to numbers: small integers with shared scales.
//
//   blocks: BYTES bytes for each BLOCK elements, row by row      y (n) T, n a whole number of units of 32
//   rows:   given, row r of y is row rows[r] of the blocks, both `width` wide; a whole number of blocks
//
//   Q4_0, Q5_0, Q8_0   32        d (q - 8), d (q - 16), d q
//   Q4_1, Q5_1         32        d q + m
//   Q4_K, Q5_K         8 of 32   (d s) q - (dmin m)        s and m of 6 bits for each 32
//   Q6_K               16 of 16  (d s) (q - 32)            s of 8 bits for each 16
//
// Contract: written (=). d, m and dmin are f16. Each product and sum is rounded by itself in f32, the result once more to
// T: the bits of the processor's values. Bound by memory: BYTES / BLOCK read and sizeof(T) written an element; blocks begin
// anywhere, so their bytes are read one by one, which the caches carry.
//
// Macros: T; KIND, BLOCK, BYTES: a type of blocks, its elements and bytes.  Source: the formats are ggml's.
#include "common.cuh"

enum Kind { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

__device__ __forceinline__ f32 half_at(const u8* p) {
    f16 h;
    h.bits = (u16)(p[0] | p[1] << 8);
    return widen(h);
}
__device__ __forceinline__ f32 madd(f32 a, f32 b, f32 c) { return __fadd_rn(__fmul_rn(a, b), c); }

// Scale and minimum of sub-block j of 8, six bits each: the first four of each lie in the low six bits of bytes 0..4 and
// 4..8; the last four have their low nibbles in bytes 8..12 and their high two bits on top of the first four.
__device__ __forceinline__ void scale_min(const u8* p, u32 j, f32* scale, f32* min) {
    if (j < 4) {
        *scale = (f32)(p[j] & 63);
        *min = (f32)(p[j + 4] & 63);
    } else {
        *scale = (f32)((p[j + 4] & 15) | p[j - 4] >> 6 << 4);
        *min = (f32)(p[j + 4] >> 4 | p[j] >> 6 << 4);
    }
}

// v = elements at..at + 8 of block b; at is a multiple of 8, so they share their scale.
__device__ __forceinline__ void eight(f32 (&v)[8], const u8* b, u32 at) {
    const u32 shift = at % 32 / 16 * 4, k = at % 16;  // of 32: the low nibbles of 16 bytes, then their high ones
    if (KIND == Q4_0) {
        const f32 d = half_at(b);
        for (u32 e = 0; e < 8; ++e) v[e] = d * (f32)((i32)(b[2 + k + e] >> shift & 15) - 8);
    } else if (KIND == Q4_1) {
        const f32 d = half_at(b), m = half_at(b + 2);
        for (u32 e = 0; e < 8; ++e) v[e] = madd(d, (f32)(b[4 + k + e] >> shift & 15), m);
    } else if (KIND == Q5_0 || KIND == Q5_1) {
        const u8* high = b + (KIND == Q5_0 ? 2 : 4);  // bit i is the fifth of element i
        const f32 d = half_at(b), m = KIND == Q5_0 ? 0.0f : half_at(b + 2);
        for (u32 e = 0; e < 8; ++e) {
            const i32 q = (high[4 + k + e] >> shift & 15) | (high[at / 8] >> e & 1) << 4;
            v[e] = KIND == Q5_0 ? d * (f32)(q - 16) : madd(d, (f32)q, m);
        }
    } else if (KIND == Q8_0) {
        const f32 d = half_at(b);
        for (u32 e = 0; e < 8; ++e) v[e] = d * (f32)(signed char)b[2 + at + e];
    } else if (KIND == Q4_K || KIND == Q5_K) {
        // Sub-blocks 2j and 2j + 1 share 32 bytes, as low and high nibbles; bit j of byte i of `high` is the fifth bit of
        // element i of sub-block j.
        const u32 j = at / 32;
        const u8 *high = b + 16 + at % 32, *low = b + (KIND == Q4_K ? 16 : 48) + j / 2 * 32 + at % 32;
        f32 scale, min;
        scale_min(b + 4, j, &scale, &min);
        scale = __fmul_rn(half_at(b), scale);
        min = __fmul_rn(half_at(b + 2), min);
        for (u32 e = 0; e < 8; ++e) {
            const u32 q = (low[e] >> j % 2 * 4 & 15) | (KIND == Q5_K ? (high[e] >> j & 1) << 4 : 0);
            v[e] = madd(scale, (f32)q, -min);
        }
    } else {
        // Each half of 128 elements has 64 bytes of low nibbles and 32 of high pairs: its four runs of 32 are the low
        // nibbles of both 32-byte halves, then their high nibbles.
        const u32 part = at / 128, run = at / 32 % 4;
        const u8 *low = b + part * 64 + run % 2 * 32 + at % 32, *high = b + 128 + part * 32 + at % 32;
        const f32 scale = half_at(b + 208) * (f32)(signed char)b[192 + at / 16];
        for (u32 e = 0; e < 8; ++e) {
            const i32 q = (low[e] >> run / 2 * 4 & 15) | (high[e] >> run * 2 & 3) << 4;
            v[e] = scale * (f32)(q - 32);
        }
    }
}

// A pack of 8 elements a thread.
extern "C" __global__ void ggml(T* y, const u8* blocks, const u32* rows, u64 n, u32 width) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    const u64 row = rows == 0 ? 0 : i / width;
    const u64 from = rows == 0 ? i : (u64)rows[row] * width + (i - row * width);
    f32 v[8];
    eight(v, blocks + from / BLOCK * BYTES, (u32)(from % BLOCK));
    store8(y + i, v, PACK);
}
