// What all kernels share: names of types, loads that widen, stores that round, sums in a fixed order.
//
// No header of CUDA's is needed: NVRTC knows threadIdx, shuffles and expf by itself, and a bf16 is 16 bits that are
// the upper half of a single.
#pragma once

// Names of single letters are macros of the files that include this (T, W, S, F): none is used here.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#define INFINITY_F32 __int_as_float(0x7f800000)
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ f32 widen(f32 x) { return x; }
__device__ __forceinline__ f32 widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ f32 widen(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Rounds to the nearest, ties to even.
template <class To> __device__ __forceinline__ To narrow(f32 x);
template <> __device__ __forceinline__ f32 narrow<f32>(f32 x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 narrow<f16>(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}


// A thread's share of a row is packs of 8 consecutive elements, whatever their type: pack p of a row belongs to
// thread p mod (threads of the block). So the order of a sum depends on the size of the row and of the block, not on
// alignment. A pack that is whole and aligned is moved in words of 16 bytes.
const int PACK = 8;

__device__ __forceinline__ bool aligned(const void* p) { return ((u64)p & 15) == 0; }

// v = the n (at most 8, more count as 8) elements at p, zeros after them.
__device__ __forceinline__ void load8(f32 (&v)[8], const f32* p, i64 n) {
    if (n >= 8 && aligned(p)) {
        const float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
        v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w;
        v[4] = b.x; v[5] = b.y; v[6] = b.z; v[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = i < n ? p[i] : 0.0f;
    }
}

template <class Half> __device__ __forceinline__ void load8(f32 (&v)[8], const Half* p, i64 n) {
    if (n >= 8 && aligned(p)) {
        const uint4 a = *(const uint4*)p;
        const u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Half low, high;
            low.bits = (u16)words[i];
            high.bits = (u16)(words[i] >> 16);
            v[2 * i] = widen(low);
            v[2 * i + 1] = widen(high);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = i < n ? widen(p[i]) : 0.0f;
    }
}

// The first n elements at p = v, rounded.
__device__ __forceinline__ void store8(f32* p, const f32 (&v)[8], i64 n) {
    if (n >= 8 && aligned(p)) {
        ((float4*)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
        ((float4*)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) p[i] = v[i];
    }
}

template <class Half> __device__ __forceinline__ void store8(Half* p, const f32 (&v)[8], i64 n) {
    if (n >= 8 && aligned(p)) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            words[i] = (u32)narrow<Half>(v[2 * i]).bits | (u32)narrow<Half>(v[2 * i + 1]).bits << 16;
        *(uint4*)p = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) p[i] = narrow<Half>(v[i]);
    }
}

// Four: where all that is moved is f32, 8 would leave a warp's loads 32 bytes apart, two requests for each sector.
__device__ __forceinline__ void load4(f32 (&v)[4], const f32* p, i64 n) {
    if (n >= 4 && aligned(p)) {
        const float4 a = *(const float4*)p;
        v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = i < n ? p[i] : 0.0f;
    }
}
__device__ __forceinline__ void store4(f32* p, const f32 (&v)[4], i64 n) {
    if (n >= 4 && aligned(p)) {
        *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < n) p[i] = v[i];
    }
}
template <class Half> __device__ __forceinline__ void store4(Half* p, const f32 (&v)[4], i64 n) {
    if (n >= 4 && ((u64)p & 7) == 0) {
        const u32 low = (u32)narrow<Half>(v[0]).bits | (u32)narrow<Half>(v[1]).bits << 16;
        *(uint2*)p = make_uint2(low, (u32)narrow<Half>(v[2]).bits | (u32)narrow<Half>(v[3]).bits << 16);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < n) p[i] = narrow<Half>(v[i]);
    }
}

// Two elements at p.
__device__ __forceinline__ void store2(f32* p, f32 low, f32 high) {
    if (((u64)p & 7) == 0) *(float2*)p = make_float2(low, high);
    else p[0] = low, p[1] = high;
}
template <class Half> __device__ __forceinline__ void store2(Half* p, f32 low, f32 high) {
    const Half a = narrow<Half>(low), b = narrow<Half>(high);
    if (((u64)p & 3) == 0) *(u32*)p = (u32)a.bits | (u32)b.bits << 16;
    else p[0] = a, p[1] = b;
}

// What v is after it was stored and read again.
template <class Kept> __device__ __forceinline__ void round8(f32 (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = widen(narrow<Kept>(v[i]));
}

// Sum over a warp, in every lane the same bits: at each step both partners add the same two numbers.
template <class Num> __device__ __forceinline__ Num warp_sum(Num v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

__device__ __forceinline__ f32 warp_max(f32 v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// Sum over a block of whole warps, in every thread: lanes in halves, then warps in order. `scratch`: 32 in shared memory.
template <class Num> __device__ __forceinline__ Num block_sum(Num v, Num* scratch) {
    v = warp_sum(v);
    __syncthreads();  // somebody may still read what the last call left in scratch
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    Num sum = scratch[0];
    for (u32 w = 1; w < blockDim.x / 32; ++w) sum += scratch[w];
    return sum;
}

// The largest over a block of whole warps, in every thread. NaN are passed over.
__device__ __forceinline__ f32 block_max(f32 v, f32* scratch) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    f32 top = scratch[0];
    for (u32 w = 1; w < blockDim.x / 32; ++w) top = fmaxf(top, scratch[w]);
    return top;
}
