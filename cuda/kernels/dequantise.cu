// What bitsandbytes has besides NF4 to numbers: FP4, int8, and scales that are quantised themselves.
//
//   fp4:    y[i] = code[nibble i] absmax[i / block]      packed (n / 2, rounded up) u8, the upper nibble first
//   int8:   y[i] = q[i] (absmax[i / cols] / 127)         q (n) i8, n a whole number of rows
//   scales: absmax[b] = code[codes[b]] absmax2[b / block2] + offset      codes (blocks) u8, code (256) f32
//
// absmax, absmax2: f32; y: (n) T. `scales` makes the absmax that `fp4` takes; `nf4` decodes it itself.
// Contract: written (=). Each product and sum is rounded by itself in f32, the result once more to T: the bits of the
// processor's values. Bound by memory: half a byte or one is read and sizeof(T) written an element; of scales a byte is
// read and 4 are written a block.
//
// Macros: T.  Source: Dettmers et al., "LLM.int8()", arXiv:2208.07339, section 2; "QLoRA", arXiv:2305.14314, section 3.
#include "common.cuh"

// By bit pattern; zero with both signs.
__constant__ f32 FP4[8] = {0.0f, 0.0625f / 12.0f, 8.0f / 12.0f, 1.0f, 4.0f / 12.0f, 0.5f, 2.0f / 12.0f, 0.25f};

// n (more count as 8) bytes at p, zeros after them.
__device__ __forceinline__ uint2 bytes8(const u8* p, u64 n) {
    if (n >= 8 && ((u64)p & 7) == 0) return *(const uint2*)p;
    u32 words[2] = {0, 0};
#pragma unroll
    for (u32 k = 0; k < 8; ++k)
        if (k < n) words[k / 4] |= (u32)p[k] << 8 * (k % 4);
    return make_uint2(words[0], words[1]);
}

// A pack of 8 elements a thread. Blocks are of 1 << shift elements, 8 at least: a pack lies in one. The code is in shared
// memory: lanes that look up different values of constant memory wait for each other.
extern "C" __global__ void fp4(T* y, const u8* packed, const f32* absmax, u64 n, u32 shift) {
    __shared__ f32 code[16];
    if (threadIdx.x < 16) code[threadIdx.x] = threadIdx.x < 8 ? FP4[threadIdx.x] : -FP4[threadIdx.x - 8];
    __syncthreads();
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    u32 word = 0;
    if (n - i >= 8 && ((u64)(packed + i / 2) & 3) == 0) {
        word = *(const u32*)(packed + i / 2);
    } else {
        for (u32 k = 0; k < 4; ++k)
            if (i + 2 * k < n) word |= (u32)packed[i / 2 + k] << 8 * k;
    }
    const f32 scale = absmax[i >> shift];
    f32 v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = code[word >> (e % 2 == 0 ? 4 * e + 4 : 4 * e - 4) & 15] * scale;
    store8(y + i, v, n - i);
}

// A pack a thread; a pack may begin in one row and end in another.
extern "C" __global__ void int8(T* y, const u8* q, const f32* absmax, u64 n, u32 cols) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (i >= n) return;
    const uint2 words = bytes8(q + i, n - i);
    const u64 rows = n / cols;
    u64 row = i / cols;
    u32 left = cols - (u32)(i - row * cols);
    f32 scale = absmax[row] * (1.0f / 127.0f), v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
        if (left == 0 && row + 1 < rows) {
            scale = absmax[++row] * (1.0f / 127.0f);
            left = cols;
        }
        v[e] = (f32)(signed char)((e < 4 ? words.x : words.y) >> 8 * (e % 4)) * scale;
        --left;
    }
    store8(y + i, v, n - i);
}

extern "C" __global__ void scales(
    f32* absmax, const u8* codes, const f32* code, const f32* absmax2, f32 offset, u64 blocks, u32 block2) {
    const u64 b = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (b < blocks) absmax[b] = __fadd_rn(__fmul_rn(code[codes[b]], absmax2[b / block2]), offset);
}
