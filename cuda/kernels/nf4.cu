// NF4 to numbers: y[i] = code[nibble i] absmax[i / block].
//
//   packed (n / 2, rounded up) u8, element 2j in the upper nibble of byte j     absmax (blocks) f32     y (n) T
//
// The 16 code values are the quantiles of a normal distribution, scaled to [-1, 1]. With double quantisation (NESTED) absmax
// is itself quantised, and decoded here: absmax[b] = fine[codes[b]] coarse[b / block2] + offset, each product and sum rounded
// by itself, as `scales` in dequantise.cu does.
//
//   codes (blocks) u8     fine (256) f32     coarse (blocks / block2, rounded up) f32
//
// Contract: written (=). Bound by memory: half a byte read and sizeof(T) written an element.
//
// Macros: T, NESTED (0 or 1; if 0 `coarse` is absmax).  Source: Dettmers et al., "QLoRA", arXiv:2305.14314, section 3 and
// appendix E; the layout of bitsandbytes.
#include "common.cuh"

__constant__ f32 CODE[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

__device__ __forceinline__ f32 scale_of(u32 code, f32 coarse, const f32* fine, f32 offset) {
    return NESTED ? __fadd_rn(__fmul_rn(fine[code], coarse), offset) : coarse;
}

// The scale of a block, of any size.
__device__ __forceinline__ f32 scale_at(
    u64 b, const u8* codes, const f32* fine, const f32* coarse, f32 offset, u32 block2) {
    return NESTED ? scale_of(codes[b], coarse[b / block2], fine, offset) : coarse[b];
}

// Rung 0: an element a thread.
extern "C" __global__ void nf4_naive(
    T* y, const u8* packed, const u8* codes, const f32* fine, const f32* coarse, f32 offset, u64 n, u32 block, u32 block2) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u8 byte = packed[i / 2];
    y[i] = narrow<T>(CODE[i % 2 == 0 ? byte >> 4 : byte & 15] * scale_at(i / block, codes, fine, coarse, offset, block2));
}

// Rung 1: 4 bytes, 8 elements a pack, and PACKS packs a thread, all read before the first is used; those of a warp lie side
// by side. Blocks of 8 << shift elements and of 1 << shift2 scales: a pack lies in one, and no division finds it (a division
// of 64 bits takes more instructions than all the rest). Other blocks (shift = 32) go element by element.
// The codes are in shared memory: lanes that look up different values of constant memory wait for each other.
const int PACKS = 4;

__device__ __forceinline__ void decode(
    T* y, const u8* packed, const u8* codes, const f32* fine, const f32* coarse, f32 offset, u64 n, u32 block, u32 block2,
    u32 shift, u32 shift2) {
    __shared__ f32 code[16], near[NESTED ? 256 : 1];
    const u64 first = (u64)blockIdx.x * (PACKS * blockDim.x) + threadIdx.x;
    const u64 whole = shift < 32 && ((u64)packed & 3) == 0 && aligned(y) ? n / PACK : 0;
    u32 words[PACKS], of_scale[PACKS];
    f32 scales[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        const u64 p = first + k * blockDim.x;
        if (p >= whole) continue;
        words[k] = ((const u32*)packed)[p];
        const u64 b = p >> shift;
        of_scale[k] = NESTED ? codes[b] : 0;
        scales[k] = coarse[NESTED ? b >> shift2 : b];
    }
    if (threadIdx.x < 16) code[threadIdx.x] = CODE[threadIdx.x];
    if (NESTED)
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) near[i] = fine[i];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        const u64 p = first + k * blockDim.x;
        if (p >= whole) continue;
        const f32 scale = scale_of(of_scale[k], scales[k], near, offset);
        f32 v[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = code[words[k] >> (e % 2 == 0 ? 4 * e + 4 : 4 * e - 4) & 15] * scale;
        store8(y + p * PACK, v, PACK);
    }
    // The end, and all where packs are cut by blocks or lie anywhere.
#pragma unroll 1
    for (int k = 0; k < PACKS; ++k) {
        const u64 p = first + k * blockDim.x;
        if (p < whole) continue;
        for (u64 i = p * PACK; i < min(n, p * PACK + PACK); ++i) {
            const u32 byte = packed[i / 2];
            const f32 scale = scale_at(i / block, codes, near, coarse, offset, block2);
            y[i] = narrow<T>(code[i % 2 == 0 ? byte >> 4 : byte & 15] * scale);
        }
    }
}

extern "C" __global__ void nf4(
    T* y, const u8* packed, const u8* codes, const f32* fine, const f32* coarse, f32 offset, u64 n, u32 block, u32 block2,
    u32 shift, u32 shift2) {
    decode(y, packed, codes, fine, coarse, offset, n, block, block2, shift, shift2);
}

// One of many weights of n elements each: of blockIdx.y, whose numbers come after those of the weights before.
struct Weight {
    const u8 *packed, *codes;
    const f32 *fine, *coarse;
    f32 offset;
    u32 unused;
};

extern "C" __global__ void nf4_each(T* y, const Weight* weights, u64 n, u32 block, u32 block2, u32 shift, u32 shift2) {
    const Weight w = weights[blockIdx.y];
    decode(y + blockIdx.y * n, w.packed, w.codes, w.fine, w.coarse, w.offset, n, block, block2, shift, shift2);
}
