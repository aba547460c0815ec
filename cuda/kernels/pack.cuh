// Packs as they lie in memory: asked for early, widened late.
//
// load8 widens what it has read, and so waits for it, before the next load begins; a kernel that has much to read
// fetches packs first. WHOLE, that all packs are whole and aligned, is decided once for a kernel's run, outside of
// loops: a choice at each load would be a branch at each.
#pragma once
#include "common.cuh"

// 8 elements as they lie in memory.
template <class Num> union Pack {
    uint4 words[sizeof(Num) / 2];
    Num at[8];
};

// Forgets what was computed from a pack: widened elements would take twice the registers of the pack until the row's sum
// is known.
template <class Num> __device__ __forceinline__ void forget(Pack<Num>& pack) {
#pragma unroll
    for (int i = 0; i < sizeof(Num) / 2; ++i) {
        uint4& w = pack.words[i];
        asm volatile("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w));
    }
}

// The n (more count as 8) elements at p, zeros after them. WHOLE: all packs are whole and aligned.
template <bool WHOLE, class Num> __device__ __forceinline__ Pack<Num> fetch(const Num* p, i32 n) {
    Pack<Num> pack;
#pragma unroll
    for (int i = 0; i < sizeof(Num) / 2; ++i) pack.words[i] = make_uint4(0, 0, 0, 0);
    if (WHOLE) {
        if (n > 0) {
#pragma unroll
            for (int i = 0; i < sizeof(Num) / 2; ++i) pack.words[i] = ((const uint4*)p)[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) pack.at[i] = p[i];
    }
    return pack;
}

template <bool WHOLE, class Num> __device__ __forceinline__ void put(Num* p, const Pack<Num>& pack, i32 n) {
    if (WHOLE) {
        if (n > 0) {
#pragma unroll
            for (int i = 0; i < sizeof(Num) / 2; ++i) ((uint4*)p)[i] = pack.words[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < n) p[i] = pack.at[i];
    }
}

// A pack as numbers. Those of bf16 are taken from the words by a shift and a mask: halves of words by themselves cost two
// more moves each.
struct Eight {
    f32 at[8];
};
template <class Num> __device__ __forceinline__ Eight wide(const Pack<Num>& pack) {
    Eight v;
#pragma unroll
    for (int i = 0; i < 8; ++i) v.at[i] = widen(pack.at[i]);
    return v;
}
template <> __device__ __forceinline__ Eight wide<bf16>(const Pack<bf16>& pack) {
    const uint4 a = pack.words[0];
    const u32 words[4] = {a.x, a.y, a.z, a.w};
    Eight v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v.at[2 * i] = __uint_as_float(words[i] << 16);
        v.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return v;
}
template <> __device__ __forceinline__ Eight wide<f16>(const Pack<f16>& pack) {
    const uint4 a = pack.words[0];
    const u32 words[4] = {a.x, a.y, a.z, a.w};
    Eight v;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
            : "=f"(v.at[2 * i]), "=f"(v.at[2 * i + 1])
            : "r"(words[i]));
    return v;
}

template <class Num> __device__ __forceinline__ Pack<Num> rounded(const f32 (&v)[8]) {
    Pack<Num> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.at[i] = narrow<Num>(v[i]);
    return pack;
}

__device__ __forceinline__ bool whole(u32 size, const void* a, const void* b, const void* c, const void* d) {
    return size % PACK == 0 && (((u64)a | (u64)b | (u64)c | (u64)d) & 15) == 0;
}
